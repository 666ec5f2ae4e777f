"""To import torch takes longer than most tests: this process does it once, and scripts run in forks of it.

python tests/server.py SOCKET                     serves until its standard input closes
python tests/server.py SOCKET SCRIPT FLAGS...     runs a script by the server as python SCRIPT FLAGS... would;
                                                  as `sys.executable` it serves scripts that start scripts

A client sends one line of JSON, {"argv", "env"}, with its standard input, output and error; it is answered
with the pid of the fork, which leads a session of its own, and with its exit status when it has ended.
"""

import atexit
import faulthandler
import gc
import json
import os
import runpy
import signal
import socket
import sys
import threading


class Started:
    """A script in a fork of the server: a process like that of `subprocess.Popen`."""

    def __init__(self, path, argv, env, streams):
        self.connection, self.returncode = socket.socket(socket.AF_UNIX), None
        self.connection.connect(path)
        job = json.dumps({"argv": [str(word) for word in argv], "env": dict(env)}) + "\n"
        socket.send_fds(self.connection, [job.encode()], streams)
        self.answers = self.connection.makefile()
        self.pid = int(self.answers.readline())

    def poll(self):
        """The exit status, minus a signal's number as in subprocess; None while it runs."""
        self.connection.setblocking(False)
        try:
            ended = self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        finally:
            self.connection.setblocking(True)
        return self.wait() if ended else None

    def wait(self):
        if self.returncode is None:
            self.returncode = int(self.answers.readline())
        return self.returncode


def serve(path):
    import scipy.stats  # noqa: F401
    import torch._dynamo  # noqa: F401  the first optimizer would
    import torch.utils.tensorboard  # noqa: F401
    import torchvision  # noqa: F401

    # what scripts import is compiled once, even where PYTHONDONTWRITEBYTECODE is set
    sys.dont_write_bytecode, sys.pycache_prefix = False, f"{path}.bytecode"
    gc.freeze()  # or collections in a fork would touch, and so copy, all of it
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    parent = os.getpid()
    threading.Thread(target=lambda: (sys.stdin.read(), os.kill(parent, signal.SIGTERM)), daemon=True).start()
    while True:
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        listener.close()
        message, streams = b"", []
        while not message.endswith(b"\n"):
            part, fds, _, _ = socket.recv_fds(connection, 2**16, 3)
            if not part:
                os._exit(1)  # the client has gone
            message, streams = message + part, streams + fds
        child = os.fork()
        if not child:
            connection.close()
            run_script(json.loads(message), streams)
        for stream in streams:
            os.close(stream)
        connection.sendall(f"{child}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            connection.sendall(f"{status}\n".encode())
        finally:
            os._exit(0)


def run_script(job, streams):
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    faulthandler.register(signal.SIGALRM, file=2, chain=True)  # says where it hangs, and ends
    signal.alarm(120)  # nobody waits for it longer
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in ((0, "r"), (1, "w"), (2, "w")))
    os.environ.clear()
    os.environ.update(job["env"])
    sys.executable = os.environ.get("SERVED_PYTHON", sys.executable)
    sys.argv = job["argv"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    status = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            raise
        status = stopped.code or 0
    # as Python ends, but for freeing all modules: that would copy what the forks share, half a second
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    status = Started(sys.argv[1], sys.argv[2:], os.environ, [0, 1, 2]).wait()
    if status < 0:
        os.kill(os.getpid(), -status)
    sys.exit(status)
