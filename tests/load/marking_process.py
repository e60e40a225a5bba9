"""A process that marks what it is told to, one message after another, says each time that it runs, and never ends."""

import socket
import time

from headrace.load.channel import Channel
from headrace.load.launch import watch_parent
from headrace.load.marks import Doing, Marks


def main(parent, channel_fd, marks_fd):
    watch_parent(parent, channel_fd)
    marks = Marks(marks_fd)
    marks.catch_stacks()
    channel = Channel(socket.socket(fileno=channel_fd))
    while (message := channel.receive()[0]) != "sleep":
        marks.lanes[0].mark(*message[:2], Doing(message[2]))
        marks.beat()
        channel.send("marked")
    sleep_for_ever()


def sleep_for_ever():
    while True:
        time.sleep(600)
