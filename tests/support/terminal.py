"""Runs a command on a terminal of 100 columns, and prints all that it wrote there. Ends as the command does, or by the
signal's number below 0 as 128 and it.

Lines of stdin say what is typed, each a JSON list of two texts: what must have been written since the last one, and what is
typed then. "timeout", and everything so far, is the end where that does not come.
"""
import fcntl
import json
import os
import pty
import select
import struct
import sys
import termios

steps = [json.loads(line) for line in sys.stdin]
child, terminal = pty.fork()
if child == 0:
    os.execv(sys.argv[1], sys.argv[1:])
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
unseen = b""
while True:
    if not select.select([terminal], [], [], 60)[0]:
        sys.exit(f"timeout: waiting for {steps[:1]} in {unseen!r}")
    try:
        written = os.read(terminal, 65536)
    except OSError:  # Linux says so where the other side is closed
        break
    if not written:
        break
    sys.stdout.buffer.write(written)
    unseen += written
    while steps and steps[0][0].encode() in unseen:
        wanted, typed = steps.pop(0)
        unseen = unseen.split(wanted.encode(), 1)[1]
        os.write(terminal, typed.encode())
sys.stdout.buffer.flush()
ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
if steps:
    sys.exit(f"ended with {ended} before {steps[0]}")
sys.exit(ended if ended >= 0 else 128 - ended)
