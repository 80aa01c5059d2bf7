"""A host in thirty lines, from the byte table in common/src/wire.rs: says hello, beats, falls silent.

usage: beat.py ADDRESS PORT KEY_FILE HOST_ID SECONDS"""
import socket, struct, sys, time
from blake3_keyed import keyed_hash

address, port, key_file, host, seconds = sys.argv[1:]
_, key_id, generation, digits = open(key_file).read().strip().split(":")
key, host, boot, gap_us = bytes.fromhex(digits), bytes.fromhex(host), int(time.time()), 200_000
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
seq, epoch, hello, end = 0, 0, True, time.monotonic() + float(seconds)
name = b"python"
HELLO = struct.pack(">HHI8xBB", 0, 2 + len(name), gap_us, 1, len(name)) + name
BEAT = struct.pack(">HBBBBHIBBBB", 0, 255, 255, 255, 255, 65535, 2**32 - 1, 255, 255, 255, 0)
while time.monotonic() < end:
    seq, now = seq + 1, time.monotonic()
    body = struct.pack(">BBBBHH16sIIQII", 2, 2 if hello else 1, 1, int(key_id), int(generation), 0,
                       host, boot, seq, int(now * 1e6), gap_us, epoch) + (HELLO if hello else BEAT)
    sock.sendto(body + keyed_hash(key, body)[:16], (address, int(port)))
    while (left := now + gap_us / 1e6 - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            ack = sock.recv(2048)
        except OSError:
            continue
        if len(ack) >= 72 and ack[1] == 3 and keyed_hash(key, ack[:-16])[:16] == ack[-16:]:
            epoch, hello = struct.unpack(">I", ack[44:48])[0], ack[2] != 0
print("silent", flush=True)
sys.stdin.read()  # the socket stays open, so the kernel does not answer probes in our place
