"""The real binary as a process that is started and killed, again and again, on one data folder."""

import asyncio
import json
import os
import signal


class NodeEnded(Exception):
    """The node ended by itself: nobody asked it to."""


class Node:
    """One life of the node."""

    def __init__(self, binary, environment, fire, log):
        self.binary, self.environment, self.fire = binary, environment, fire
        self.address = None
        self.is_up = asyncio.Event()
        self.is_killed = False
        self.tail = []  # last lines of its log
        self.log = log  # a file that all lives share
        self.process = None
        self.reading = None

    async def start(self):
        """Starts the process; it is not up yet."""
        self.process = await asyncio.create_subprocess_exec(
            self.binary, "serve", env=self.environment, cwd=self.environment["HOME"],
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE, limit=1 << 20)
        self.reading = asyncio.create_task(self.read_log())

    async def read_log(self):
        """Follows the log to its end."""
        with open(self.log, "ab") as log:
            async for line in self.process.stderr:
                log.write(line)
                self.take(line)

    def take(self, line):
        """One line of the log."""
        self.tail = [*self.tail[-400:], line]
        try:
            event = json.loads(line)
        except ValueError:
            return
        message = event.get("message", "")
        if message == "listening":
            host, port = event["address"].rsplit(":", 1)
            self.address = (host, int(port))
            self.is_up.set()
        elif message in ("transaction broadcast", "claim included"):
            self.fire(message)

    def kill(self):
        """`kill -9`, at once. A second kill is none."""
        if not self.is_killed and self.process.returncode is None:
            self.is_killed = True
            os.kill(self.process.pid, signal.SIGKILL)

    def terminate(self):
        """`kill -15`."""
        self.process.terminate()

    async def ended(self):
        """Waits for the process and its log; the exit status."""
        status = await self.process.wait()
        await self.reading
        return status

    def last_words(self):
        """The end of its log, as text."""
        return b"".join(self.tail[-15:]).decode(errors="replace")
