"""Runs a launcher in a terminal and looks at what that shows: terminal.py DIRECTORY PROGRAM ARGUMENT…

The view must show the run and who is slow; `q` must leave it, Ctrl-C must stop the run, and the terminal must be as it was.
"""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time

import pyte

LINES, COLUMNS = 40, 130
directory, *command = sys.argv[1:]
master, slave = pty.openpty()
fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
before = termios.tcgetattr(slave)


def lead():
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Screen(pyte.Screen):
    def write_process_input(self, data):
        os.write(master, data.encode())


screen = Screen(COLUMNS, LINES)
stream = pyte.ByteStream(screen)
written = bytearray()
run = subprocess.Popen(command, cwd=directory, stdin=slave, stdout=slave, stderr=slave, preexec_fn=lead, env={**os.environ, "TERM": "xterm-256color"})


def shown():
    return "\n".join(line.rstrip() for line in screen.display)


def until(what, holds, seconds=120):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"{what}:\n{shown()}"
        if select.select([master], [], [], 0.2)[0]:
            more = os.read(master, 1 << 16)
            written.extend(more)
            stream.feed(more)


try:
    until("the view", lambda: "q leaves this view" in shown())
    until("a curve, and who is slow", lambda: "held-out accuracy" in shown() and "straggler" in shown())
    view = shown()
    assert "r  running   loss" in view and " of 100000" in view, view
    print(view)
    raw = termios.tcgetattr(slave)
    assert not raw[3] & termios.ICANON and raw[3] & termios.ISIG, "keys come one by one, and Ctrl-C is a signal"
    os.write(master, b"q")
    until("the view is left", lambda: b"the run goes on; `launcher watch` shows this view again" in written)
    until("lines go on", lambda: b"samples/s  eta" in written)
    assert run.poll() is None, "the run goes on"
    assert termios.tcgetattr(slave)[3] == before[3], "the terminal is as it was"

    os.write(master, b"\x03")
    until("the run stops", lambda: run.poll() is not None)
    assert run.returncode == 75, run.returncode
    assert termios.tcgetattr(slave)[3] == before[3], "the terminal is as it was"
finally:
    if run.poll() is None:
        run.kill()
        run.wait()
