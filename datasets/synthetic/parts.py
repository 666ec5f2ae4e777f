"""A synthetic face: who it is, the ellipsoids it is made of, and what is painted on them.

Head frame: x to the subject's left (image right), y down, z forward; a head is about 1.8 high. What
stands out (skull, nose, ears, hair, hat) is an ellipsoid; what is flat (brows, eyes, lips, stubble)
is painted where the surface point lies in it. All numbers of a person are (B, 1, 1).

Beards and stubble are `skin`, as in FASSEG and CelebAMask-HQ. Glasses are rims and lenses, but eyes
and brows behind a lens keep their label, as CelebAMask-HQ paints its masks.
"""

import types

import torch

from datasets.synthetic.render import Part, edge, hit, lay, rows, turn_back

FULL = ["background", "skin", "l_brow", "r_brow", "l_eye", "r_eye", "glasses", "l_ear", "r_ear"]
FULL += ["nose", "mouth", "u_lip", "l_lip", "neck", "hair", "cloth", "hat"]
ID = types.SimpleNamespace(**{name: i for i, name in enumerate(FULL)})
SKIN_TONES = [(0.92, 0.76, 0.68), (0.86, 0.66, 0.54), (0.76, 0.57, 0.45), (0.62, 0.45, 0.35)]
SKIN_TONES += [(0.48, 0.34, 0.27), (0.37, 0.27, 0.22)]
HAIR_TONES = [(0.07, 0.06, 0.05), (0.10, 0.07, 0.06), (0.16, 0.11, 0.08), (0.22, 0.16, 0.11)]
HAIR_TONES += [(0.31, 0.23, 0.16), (0.60, 0.48, 0.32), (0.76, 0.65, 0.46), (0.42, 0.21, 0.12)]
HAIR_TONES += [(0.62, 0.61, 0.60)]
RED = (1.0, 0.72, 0.70)  # what blood leaves of the colour of skin
IRIS_TONES = [(0.20, 0.11, 0.05), (0.12, 0.07, 0.04), (0.30, 0.18, 0.08), (0.27, 0.36, 0.45)]
IRIS_TONES += [(0.29, 0.36, 0.25)]


def person(draw):
    """Shape, style and pose of B people, as (B, 1, 1) numbers."""
    p = types.SimpleNamespace()
    p.yaw, p.pitch, p.roll = torch.deg2rad(draw(-95, 95)), draw(-0.2, 0.2), draw(-0.12, 0.12)
    p.pitch, p.roll = p.pitch * draw(0.1, 1), p.roll * draw(0.1, 1)  # mostly upright
    p.width, p.jaw, p.chin = draw(0.93, 1.07), draw(0.46, 0.57), draw(-0.05, 0.06)
    p.eye_x, p.eye_y, p.eye_tilt = draw(0.22, 0.27), draw(-0.03, 0.03), draw(-0.02, 0.05)
    p.eye_w, p.eye_h = draw(0.125, 0.15), draw(0.045, 0.063)
    p.gaze, p.look = draw(-0.03, 0.03), draw(-0.012, 0.012)
    p.brow_y, p.brow_arch = p.eye_y - draw(0.14, 0.2), draw(0.0, 0.05)
    p.brow_h, p.brow_tilt = draw(0.018, 0.036), draw(-0.03, 0.03)
    p.nose_w, p.nose_y, p.nose_z = draw(0.9, 1.3), draw(0.23, 0.3), draw(-0.06, 0.04)
    p.mouth_y, p.mouth_w, p.smile = draw(0.51, 0.58), draw(0.17, 0.23), draw(-0.02, 0.05)
    p.upper, p.lower = draw(0.05, 0.068), draw(0.068, 0.095)
    p.gap = torch.where(draw.chance(0.25), draw(0.06, 0.16), 0.0)
    p.hat, p.brim = draw.chance(0.06), draw()
    style = draw()  # bald, short, long, big, bun, long again
    p.bald, p.long = style < 0.05, ((style > 0.3) & (style < 0.76)) | (style > 0.92)
    p.big, p.bun = (
        (style > 0.76) & (style < 0.86) & ~p.hat,
        (style > 0.86) & (style < 0.92) & ~p.hat,
    )
    p.hair = torch.where(p.big, draw(0.14, 0.26), torch.where(p.hat, 0.03, draw(0.05, 0.16)))
    p.curl = torch.where(p.big, draw(0.10, 0.3), draw(0.0, 0.06))
    p.length, p.front = draw(0.6, 2.0), draw(0.18, 0.4)
    p.tucked = draw.chance(0.35)  # long hair behind the ears, which it hides otherwise
    p.line, p.slope, p.temple = draw(0.05, 0.30), draw(0.75, 1.05), draw(-0.2, 0.25)
    p.forehead, p.side, p.arch = draw(-0.8, -0.5), draw(0.05, 0.4), draw(0, 0.8)
    p.fringe = torch.where(draw.chance(0.15) & ~p.hat, draw(-0.42, -0.2), -9.0)
    p.part = draw(-0.3, 0.3)
    p.glasses = draw.chance(0.1)
    p.beard = torch.where(draw.chance(0.2), draw(0.15, 0.9), 0.0)
    p.collar, p.hide = draw(0.36, 0.58), draw.chance(0.07)
    return p


def hairline(p, x, y, z):
    """Negative where hair grows: above a plane from brow to nape, but for the forehead; or in the fringe."""
    line = y + p.slope * z + p.temple * x.abs() - p.line
    line = torch.maximum(line, torch.minimum(z - p.side, y - p.forehead - p.arch * x.abs()))
    fringe = torch.where(z > 0, y - p.fringe - 0.25 * (x - p.part).abs(), 1.0)
    return torch.minimum(line, fringe)


def parts(p, draw):
    """The ellipsoids of B people. Skin comes first, since parts blend into those before them."""
    w, th = p.width, p.hair
    top = (0.60 * w + th, 0.68 + th, 0.74 + th)
    limit = torch.where(p.tucked, -0.25, p.front)

    def cap(x, y, z):
        return hairline(p, x, y, z) < 0

    def strands(x, y, z):
        return z + 0.35 * y < limit + 0.2 * x.abs()

    def crown(x, y, z):
        return y + 0.1 * z < -0.32

    def cloth(x, y, z):
        return x * x + (z - 0.1) ** 2 + 0.5 * (z - 0.1).clamp(min=0) > p.collar**2

    ear, ear_x = (draw(0.055, 0.085), draw(0.18, 0.24), draw(0.10, 0.14)), draw(0.55, 0.6) * w
    listens = (~p.long | p.tucked) & ~p.big
    chin, lip_y = draw(0.13, 0.19), p.mouth_y + 0.06 + p.gap / 2
    wing, skin = 0.075 * p.nose_w, ID.skin
    occluder = (draw(-0.9, 0.9), draw(-0.5, 1), 2), (draw(0.1, 0.2), draw(0.4, 0.9), 0.1)
    return [
        Part(skin, (0, -0.20, -0.05), (0.60 * w, 0.68, 0.74)),
        Part(skin, (0, 0.28 + p.chin / 2, 0.13), (p.jaw * w, 0.62, 0.50), blend=0.06),
        Part(skin, (0, 0.72 + p.chin, 0.38), (0.17, 0.15, chin), blend=0.05),
        Part(skin, (0, -0.14, 0.50), (0.34, 0.11, draw(0.15, 0.20)), blend=0.05),
        Part(skin, (0.27 * w, 0.20, 0.27), (0.20, 0.2, 0.27), blend=0.05),
        Part(skin, (-0.27 * w, 0.20, 0.27), (0.20, 0.2, 0.27), blend=0.05),
        Part(skin, (0, p.mouth_y - 0.05, 0.47), (0.19, 0.07, 0.17), blend=0.03),
        Part(skin, (0, lip_y, 0.46), (0.17, 0.07, 0.17), blend=0.03),
        Part(ID.nose, (0, 0.10, 0.59), (wing, 0.24, 0.115), 0.38, 0.02),
        Part(ID.nose, (wing, p.nose_y + 0.02, 0.58), (0.065, 0.07, 0.11), 0, 0.03),
        Part(ID.nose, (-wing, p.nose_y + 0.02, 0.58), (0.065, 0.07, 0.11), 0, 0.03),
        Part(ID.nose, (0, p.nose_y, 0.68 + p.nose_z), (1.2 * wing, 0.09, 0.12), 0, 0.05),
        Part(ID.l_ear, (ear_x, 0.10, -0.08), ear, -0.25, show=listens),
        Part(ID.r_ear, (-ear_x, 0.10, -0.08), ear, -0.25, show=listens),
        Part(ID.neck, (0, 0.95, -0.14), (draw(0.38, 0.52), 0.8, 0.38), 0.15, 0.04, frame="body"),
        Part(ID.neck, (0, 1.64, -0.22), (1.15, 0.55, 0.44), 0, 0.10, frame="body"),
        Part(ID.cloth, (0, 1.66, -0.22), (1.25, 0.62, 0.52), keep=cloth, frame="body"),
        Part(
            ID.hair,
            (0, -0.20 - th / 2, -0.06 - th / 3),
            top,
            show=~p.bald,
            keep=cap,
            rough=p.curl,
            hollow=True,
        ),
        Part(
            ID.hair,
            (0, p.length * 0.5 - 0.05, -0.22),
            (draw(0.64, 0.76) * w + th, 0.55 + 0.5 * p.length, 0.58 + th),
            show=p.long,
            keep=strands,
            rough=p.curl,
            hollow=True,
        ),
        Part(ID.hair, (0, -0.75, -0.6), (0.3, 0.3, 0.3), show=p.bun, rough=p.curl + 0.02),
        Part(ID.hat, (0, -0.26, -0.06), tuple(r + 0.05 for r in top), show=p.hat, keep=crown),
        Part(ID.hat, (0, -0.37, 0.3), (0.62, 0.04, 0.8), 0.1, show=p.hat & (p.brim < 0.4)),
        Part(ID.hat, (0, -0.34, 0), (1.1, 0.045, 1.15), 0.1, show=p.hat & (p.brim > 0.6)),
        Part(ID.background, *occluder, show=p.hide, frame="camera"),
    ]


def crop(scene, frame, v, low, high):
    """The rows of a scene that may show the head between y = low and high, as views."""
    y = frame[:, 1, :, None, None].unbind(1)
    middle = y[1] * ((low + high) / 2) + y[2] * 0.3
    half = y[0].abs() * 0.7 + y[1].abs() * ((high - low) / 2) + y[2].abs() * 0.65
    band = rows(v, middle, half)
    s = types.SimpleNamespace(**{k: t[..., band, :] for k, t in vars(scene).items()})
    s.face = (s.label == ID.skin) & (s.z > 0.05) & (s.y > low) & (s.y < high)
    return s


def paint_skin(p, draw, s, skin, hair, pixel):
    """Blush, freckles, stubble, roots of the hair, nostrils, hollow of the ear; in place."""
    across, face = s.x.abs(), s.face
    cheek = ((across - 0.28) ** 2 + (s.y - 0.24) ** 2).sqrt_() - 0.08
    freckles = edge(0.93 - s.fine + 3 * cheek.clamp(min=0), 0.02) * draw(-1, 0.9).clamp(min=0)
    blush = edge(cheek, 0.2) * draw(0, 0.5)
    lay(s.albedo, torch.maximum(blush, freckles) * face, skin * skin.new_tensor(RED).view(3, 1, 1))

    line = 0.41 - 1.2 * (across - 0.27).clamp(min=0) + 0.04 * s.cloud[:, 1]
    beard = edge(line - s.y, 0.1) * edge(0.2 - s.z, 0.3) * (p.beard * (0.55 + 0.45 * s.fine))
    roots = edge(hairline(p, s.x, s.y + 0.07 * s.cloud[:, 0], s.z), 0.12) * (~p.bald * 0.8)
    lay(s.albedo, torch.maximum(beard, roots) * face, hair * 0.9)

    nostril = ((across - 0.05 * p.nose_w) / 0.032) ** 2 + ((s.y - p.nose_y - 0.062) / 0.02) ** 2
    hollow = ((s.y - 0.08) / 0.10) ** 2 + ((s.z + 0.06) / 0.05) ** 2
    ear = (s.label == ID.l_ear) | (s.label == ID.r_ear)
    dark = torch.where(s.label == ID.nose, edge((nostril - 1) * 0.02, 1.5 * pixel), 0.0)
    dark = torch.where(ear, 0.6 * edge((hollow - 1) * 0.04, 3 * pixel), dark)
    lay(s.albedo, dark, skin * 0.45)


def paint_eyes(p, draw, s, skin, hair, pixel):
    """Brows and eyes: colour, label, and the hollow around the eye; in place."""
    across, left, face = s.x.abs(), s.x > 0, s.face
    round_eye = ((across - p.eye_x) / 0.16) ** 2 + ((s.y - p.eye_y) / 0.12) ** 2
    s.height += face * (0.02 * (1 - 1.5 * round_eye).clamp(min=0) - 0.035 * torch.exp(-round_eye))

    a = (across - p.eye_x - 0.01) / 0.165  # -1 at the inner end, 1 at the outer end
    middle = p.brow_y - p.brow_arch * (1 - a**2) + p.brow_tilt * a
    brow = (s.y - middle).abs() - p.brow_h * (1 - 0.45 * a.clamp(min=0) ** 2)
    brow = torch.maximum(brow, (a.abs() - 1) * 0.165)
    color = torch.minimum(hair, skin * 0.62)
    lay(s.albedo, edge(brow, 1.6 * pixel) * face * (0.65 + 0.35 * s.fine), color)
    s.label.masked_fill_(face & left & (brow < 0), ID.l_brow)
    s.label.masked_fill_(face & ~left & (brow < 0), ID.r_brow)

    a = (across - p.eye_x) / p.eye_w
    bend = (1 - a**2).clamp(min=0)
    lids = p.eye_y - p.eye_tilt * a
    upper, lower = lids - p.eye_h * bend, lids + 0.7 * p.eye_h * bend
    eye = torch.maximum(torch.maximum(upper - s.y, s.y - lower), (a.abs() - 1) * p.eye_w)
    near, ball = face & (a.abs() < 1), face & (eye < 0)
    dx, dy = across - p.eye_x - torch.where(left, p.gaze, -p.gaze), s.y - p.eye_y - p.look + 0.008
    radius = (dx**2 + dy**2).sqrt_()
    glint = ((dx + torch.where(left, 0.02, -0.02)) ** 2 + (dy + 0.02) ** 2).sqrt_()
    crease = edge((upper - 0.028 - s.y).abs() - 0.008, 1.5 * pixel)
    lay(s.albedo, crease * near * 0.8, skin * 0.72)
    white = skin.sqrt() * draw(0.5, 0.8)[:, None]  # what is white takes colour from what is around it
    lay(s.albedo, edge(eye, pixel) * face, white - 0.12 * a.abs()[:, None])
    lay(s.albedo, edge(radius - 0.058, pixel) * ball, draw.tone(IRIS_TONES))
    lay(s.albedo, edge((radius - 0.056).abs() - 0.008, pixel) * ball * 0.6, 0.08)
    lay(s.albedo, edge(radius - 0.026, pixel) * ball, 0.03)
    lay(s.albedo, edge(glint - 0.012, pixel) * ball, 0.95)
    lay(s.albedo, edge((upper - s.y).abs() - 0.012, pixel) * near * 0.85, hair * 0.4)
    lay(s.albedo, edge((lower - s.y).abs() - 0.004, pixel) * near * 0.5, skin * 0.5)
    s.gloss.masked_fill_(ball, 0.8)
    s.label.masked_fill_(ball & left, ID.l_eye)
    s.label.masked_fill_(ball & ~left, ID.r_eye)


def paint_mouth(p, draw, s, skin, pixel):
    """Lips around a gap that shows teeth and dark: colour, label, and the folds above; in place."""
    face = s.face
    groove = (s.x / 0.03) ** 2 + ((s.y - p.mouth_y + 0.12) / 0.05) ** 2
    fold = ((s.x.abs() - 0.17 - 0.35 * (s.y - 0.3)) / 0.03) ** 2 + ((s.y - 0.4) / 0.12) ** 2
    s.height -= face * (0.008 * torch.exp(-groove) + 0.006 * torch.exp(-fold))
    a = s.x / p.mouth_w
    bend = (1 - a**2).clamp(min=0)
    seam = p.mouth_y - p.smile * a**2
    roof, floor = seam - 0.25 * p.gap * bend, seam + 0.75 * p.gap * bend
    top = roof - p.upper * bend * (1 - 0.3 * (1 - 5 * a.abs()).clamp(min=0))
    bottom, wide = floor + p.lower * bend, (a.abs() - 1) * p.mouth_w
    inner = torch.maximum(torch.maximum(roof - s.y, s.y - floor), wide)
    outer = torch.maximum(torch.maximum(top - s.y, s.y - bottom), wide)
    teeth = torch.maximum(inner, s.y - roof - 0.055 * bend)
    near = face & (a.abs() < 1)
    lips = skin * torch.stack([draw(0.72, 0.95), draw(0.4, 0.65), draw(0.45, 0.75)], 1)
    lay(s.albedo, edge(outer, 1.5 * pixel) * face, lips)
    lay(s.albedo, edge((s.y - seam).abs() - 0.008, pixel) * (near & (p.gap == 0)), lips * 0.55)
    lay(s.albedo, edge(inner, pixel) * (near & (p.gap > 0)), lips * 0.2)
    lay(s.albedo, edge(teeth, pixel) * (near & (p.gap > 0) & draw.chance(0.75)), 0.88)
    s.label.masked_fill_(near & (s.y > top) & (s.y < roof), ID.u_lip)
    s.label.masked_fill_(near & (s.y > floor) & (s.y < bottom), ID.l_lip)
    s.label.masked_fill_(near & (s.y >= roof) & (s.y <= floor) & (p.gap > 0), ID.mouth)


def paint(p, draw, depth, label, frame, u, v, fine, cloud):
    """The scene: label, albedo (B, 3, S, S), height, gloss, x, y, z and noise (B, S, S)."""
    skin = draw.tone(SKIN_TONES)
    hair = draw.tone(HAIR_TONES, torch.where(skin[:, 1] < 0.4, 0.4, draw(0.2, 1)))  # dark with dark skin
    table = torch.stack([skin] * len(FULL), 2)  # (B, 3, 17, 1, 1)
    table[:, :, ID.hair], table[:, :, ID.cloth] = hair, draw.rgb(0.05, 0.9) * draw(0.2, 1)[:, None]
    table[:, :, ID.neck] = skin * draw(0.6, 0.95)[:, None]  # in the shadow of the chin
    table[:, :, ID.hat] = draw.rgb(0.05, 0.9)
    table[:, :, 0] = torch.where(draw.chance(0.7)[:, None], skin, draw.rgb(0.2, 0.7))  # an occluder
    index = label.long().flatten(1)[:, None].expand(-1, 3, -1)
    s = types.SimpleNamespace(label=label, fine=fine, cloud=cloud)
    s.albedo = table.flatten(2).gather(2, index).view(*cloud[:, :3].shape)
    s.x, s.y, s.z = turn_back(frame, u, v, depth)
    s.height = depth + 0.003 * cloud[:, 3] + 0.0003 * fine

    # Strands lie in planes through the head, so hair falls from the parting to the sides.
    hairy = label == ID.hair
    plane = s.z + 0.6 * (s.x - p.part).abs() + 0.2 * s.y + 0.06 * cloud[:, 2]
    lock = (29 * plane).sin_()
    strand = (83 * plane).sin_() + (151 * plane).sin_() + lock
    s.height += hairy * ((0.002 + 0.015 * p.curl) * strand)
    streaks = 0.06 * strand + 0.14 * lock + 0.12 * (fine - 0.5)
    grain = torch.where(hairy, streaks, 0.04 * (cloud[:, 1] + fine - 0.5))
    s.albedo *= 1 + grain[:, None]
    s.gloss = torch.where(hairy, 0.3 + 0.12 * strand, torch.where(label == ID.cloth, 0.02, 0.25))

    pixel = (u[:, :, -1:] - u[:, :, :1]) / u.shape[2] / 2 + (v[:, -1:] - v[:, :1]) / v.shape[1] / 2
    paint_skin(p, draw, crop(s, frame, v, -0.9, 1.0), skin, hair, pixel)
    paint_eyes(p, draw, crop(s, frame, v, -0.33, 0.15), skin, hair, pixel)
    paint_mouth(p, draw, crop(s, frame, v, 0.25, 0.8), skin, pixel)
    return s


def backdrop(draw, cloud, u, v):
    """(B, 3, S, S): studio grey or a colour, with a gradient and sometimes blobs."""
    grey = draw(0.64, 0.82)[:, None] * (1 + draw.rgb(-0.03, 0.03))
    grey = grey * grey.new_tensor([0.97, 1, 1.03]).view(3, 1, 1)  # white once the camera has warmed it
    color = torch.where(draw.chance(0.92)[:, None], grey, draw.rgb(0.1, 0.95))
    slope = draw(-0.1, 0.1) * u + draw(-0.1, 0.1) * v
    blobs = torch.where(draw.chance(0.12), draw(0.1, 0.4), 0.02)
    return color + slope[:, None] + blobs[:, None] * (cloud[:, :1] + 0.3 * cloud[:, :3])


def wear_glasses(p, draw, label, image, depth, frame, u, v):
    """Rims and lenses, lying on a shell around the face: label and image with glasses on."""
    shell = Part(ID.glasses, (0, 0, -0.02), (0.64 * p.width, 0.8, 0.82), show=p.glasses)
    band, front = hit(shell, frame, u, v, None)
    x, y, z = turn_back(frame, u, v[:, band], front)
    across, pixel, there = x.abs(), 2.2 / v.shape[1], (front > depth[:, band]) & (z > -0.05)
    wide, high, square, thick = draw(0.17, 0.215), draw(0.13, 0.18), draw(2, 5), draw(0.015, 0.034)
    a, b = (across - p.eye_x - 0.01) / wide, (y - p.eye_y - 0.02) / high
    power = torch.exp(square * a.abs().clamp_(min=1e-3).log())  # a superellipse: round to square
    power += torch.exp(square * b.abs().clamp_(min=1e-3).log())
    ring = (torch.exp(power.log() / square) - 1) * high
    bridge = torch.maximum((y - p.eye_y + 0.01).abs() - 0.02, across - p.eye_x)
    arm = torch.maximum((y - p.eye_y + 0.02).abs() - 0.02, p.eye_x - across)
    rim = torch.where(ring < 0, 1.0, torch.minimum(bridge, arm))
    rim = torch.minimum(ring.abs() - thick, rim)
    lens, alpha = (ring < 0) & there, edge(rim, pixel) * there
    label, image = label.clone(), image.clone()
    lay(image[:, :, band], draw(-0.3, 0.45).clamp(min=0.06) * lens, draw.rgb(0.2, 0.6))
    lay(image[:, :, band], alpha, draw.rgb(0.02, 0.5) * draw(0.1, 1)[:, None])
    behind = label[:, band]
    eyes = (behind >= ID.l_brow) & (behind <= ID.r_eye)
    behind.masked_fill_(there & ((rim < 0) | (lens & ~eyes)), ID.glasses)
    return label, image
