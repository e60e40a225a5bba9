"""Stands before an HTTP server: `python relay.py PORT UPSTREAM_PORT LOG DELAY_SEC`.

Every answer begins DELAY_SEC after the server gave it, as over a long line. A line of LOG, JSON, is one request: who
asked (an address), its method and path, its Range, and how many bytes of body were sent. "ready" is printed once both
sides are there.
"""

import asyncio
import json
import re
import sys
from pathlib import Path

CHUNK_BYTES = 1 << 16


def field(head, name):
    """The value of a header; "" if it is not there."""
    found = re.search(rb"(?im)^%b:[ \t]*([^\r\n]*)" % name, head)
    return found[1].decode() if found else ""


def body_bytes(head):
    """How long the body is that follows; what the servers of these tests send says so."""
    assert not field(head, b"transfer-encoding"), head
    return int(field(head, b"content-length") or 0)


async def pass_on(reader, writer, num_bytes):
    """Send the next bytes on; how many there were."""
    left = num_bytes
    while left:
        chunk = await reader.read(min(CHUNK_BYTES, left))
        if not chunk:
            raise asyncio.IncompleteReadError(b"", left)
        writer.write(chunk)
        await writer.drain()
        left -= len(chunk)
    return num_bytes


async def exchange(client, client_writer, server, server_writer, delay_sec):
    """Pass one request and its answer on; what to log of it."""
    asked = await client.readuntil(b"\r\n\r\n")
    server_writer.write(asked)
    await pass_on(client, server_writer, body_bytes(asked))
    answered = await server.readuntil(b"\r\n\r\n")
    await asyncio.sleep(delay_sec)
    client_writer.write(answered)
    method, path = asked.split(b" ", 2)[:2]
    sent = 0 if method == b"HEAD" else await pass_on(server, client_writer, body_bytes(answered))
    address = client_writer.get_extra_info("peername")[0]
    named = {"client": address, "method": method.decode(), "path": path.decode()}
    return {**named, "range": field(asked, b"range"), "bytes": sent}


async def serve(client, client_writer, upstream_port, log, delay_sec):
    """Pass on what one connection brings, until either side ends it."""
    server, server_writer = await asyncio.open_connection("127.0.0.1", upstream_port)
    try:
        while True:
            said = await exchange(client, client_writer, server, server_writer, delay_sec)
            log.write(json.dumps(said) + "\n")
            log.flush()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # whoever was first to go
    finally:
        server_writer.close()
        client_writer.close()


async def listening(port):
    """Wait for the server."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


async def main(port, upstream_port, log, delay_sec):
    await listening(upstream_port)
    relay = await asyncio.start_server(lambda *pair: serve(*pair, upstream_port, log, delay_sec), "0.0.0.0", port)
    print("ready", flush=True)
    await relay.serve_forever()


if __name__ == "__main__":
    with Path(sys.argv[3]).open("a") as log:
        asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), log, float(sys.argv[4])))
