"""The monitor that tutorials show: a dictionary of last arrivals, and a scan of it once a second.

It neither authenticates, nor orders, nor learns, nor doubts itself; what it costs is what `cargo xtask
bench peers` compares the controller with.

usage: naive_monitor.py PORT TIMEOUT_SECONDS; prints "down ID" for whoever falls silent"""
import socket, sys, time

port, timeout = int(sys.argv[1]), float(sys.argv[2])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_RCVBUFFORCE", 33), 64 << 20)
sock.bind(("127.0.0.1", port))
sock.settimeout(0.2)
print("listening", sock.getsockname()[1], flush=True)
last, down, received, scan_at = {}, set(), 0, time.monotonic() + 1
while True:
    try:
        data, _ = sock.recvfrom(2048)
        now = time.monotonic()
        last[data[8:24]] = now
        received += 1
    except socket.timeout:
        now = time.monotonic()
    if now >= scan_at:
        for host, at in last.items():
            if now - at > timeout and host not in down:
                down.add(host)
                print("down", host.hex(), flush=True)
        print("received", received, flush=True)
        scan_at = now + 1
