"""Run folders compared, charted and exported; read only. No part of it knows a script's flags but by name."""
