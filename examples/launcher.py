#!/usr/bin/env python3
"""A small launcher: it joins a cluster, reports READY, runs the command of a START and says its end.

    launcher.py --address HOST:PORT --cert node.crt --key node.key --ca ca.crt

Written from PROTOCOL.md alone, to show the frames. It stops nothing and minds neither leases nor
restarts: careful_launcher.py is the one to grow a real launcher from.
"""
import argparse, os, re, select, socket, ssl, struct, subprocess, time, uuid

HELLO, START, INVENTORY, ACK, PING, READY = (1, 1), (1, 2), (1, 7), (1, 8), (1, 16), (2, 1)
INSTANCE_CHANGED, INVENTORY_PAGE, UNSUPPORTED, WELCOME, PONG = (3, 5), (3, 6), (4, 7), (5, 1), (5, 6)
WANT_REPLY, LAST, RUNNING, ENDED, EXITED, SIGNALED, CANNOT_EXECUTE = 1, 2, 2, 3, 0, 1, 6

def pack(layout, *values): return struct.pack("<" + layout, *values)
def text(string): return pack("Q", len(string)) + string.encode()
def send(operand, payload=b"", correlation=0, flags=0):
    tls.sendall(pack("BBBBIQ", 1, *operand, flags, len(payload), correlation) + payload)

class Reader:
    """Takes fields off the front of a payload."""
    def __init__(self, data): self.data = data
    def raw(self, count):
        taken, self.data = self.data[:count], self.data[count:]
        return taken
    def number(self, code="Q"): return struct.unpack("<" + code, self.raw(struct.calcsize("<" + code)))[0]
    def text(self): return self.raw(self.number()).decode()
    def list(self, read): return [read() for _ in range(self.number())]

class Attempt:
    def __init__(self, read):
        _session, self.sequence, _term = read.number(), read.number(), read.number()
        read.list(lambda: read.raw(4))  # GPUs
        self.id, _epoch_schema_runtime, self.demand = read.raw(36), read.raw(14), read.raw(16)
        read.list(lambda: (read.text(), read.raw(4)))  # named resources
        read.list(lambda: [read.text() for _ in range(read.number("I") + 1)])  # constraints
        read.number("B") and read.text(), read.list(read.text)  # nodes to prefer and to avoid
        read.text(), read.text(), read.text(), read.raw(4)  # tenant, name, workload, kind of task
        self.began, self.times = time.monotonic_ns(), {RUNNING: b"\0", ENDED: b"\0"}  # absent so far
        try:
            self.process = subprocess.Popen(read.list(read.text), stdin=subprocess.DEVNULL)
            self.say(RUNNING)
        except OSError as error:
            self.say(ENDED, pack("BIi", 1, CANNOT_EXECUTE, 127) + text(str(error)))

    def say(self, phase, end=b"\0"):
        self.phase, age_ns = phase, time.monotonic_ns() - self.began
        self.times[phase] = pack("BQ", 1, age_ns)
        self.state = (self.id + pack("QI", phase + 1, phase) + end + pack("Q", age_ns)
                      + self.times[RUNNING] + self.times[ENDED] + bytes(36))  # usage is not measured
        send(INSTANCE_CHANGED, self.state)

    def watch(self):
        if self.phase == RUNNING and (code := self.process.poll()) is not None:
            self.say(ENDED, pack("BIi", 1, EXITED if code >= 0 else SIGNALED, abs(code)) + text(""))

def capacity():  # thousandths of a core, MiB of memory, MiB of disk; no GPUs, no named resources
    used = [struct.unpack("<III4x", a.demand) for a in attempts.values() if a.phase == RUNNING]
    return pack("IIIQQ", *(whole - sum(taken) for whole, *taken in zip(WHOLE, *used)), 0, 0)

def on_frame(operand, correlation, payload):
    global welcome, applied
    if operand == WELCOME: welcome = True
    elif operand == START:
        attempt = Attempt(Reader(payload))
        attempts[attempt.id], applied = attempt, attempt.sequence
    elif operand == ACK:
        if attempts[payload[:36]].phase == ENDED: del attempts[payload[:36]]
    elif operand == PING: send(PONG, payload, correlation)
    elif operand == INVENTORY:
        states = [attempt.state for attempt in attempts.values()]
        page = payload + boot_id + pack("QQIQ", epoch, applied, 0, len(states)) + b"".join(states)
        send(INVENTORY_PAGE, page, correlation, LAST)
    elif operand[0] == 1: send(UNSUPPORTED, pack("HH", 0, 8) + b"not here", correlation)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for option in ("--address", "--cert", "--key", "--ca"): parser.add_argument(option, required=True)
options = parser.parse_args()
certificate = ssl.PEM_cert_to_DER_cert(open(options.cert).read())
name = re.search(rb"spiffe://[^/]+/launcher/([\w.-]+)", certificate)[1].decode()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False  # names are URIs, not hosts
context.load_verify_locations(options.ca)
context.load_cert_chain(options.cert, options.key)
host, port = options.address.rsplit(":", 1)
tls = context.wrap_socket(socket.create_connection((host, int(port))))
WHOLE, attempts, applied, welcome, asked, buffer = (1000 * os.cpu_count(), 1024, 4096), {}, 0, False, 0, b""
epoch, boot_id, node = time.time_ns(), uuid.uuid4().bytes, uuid.uuid5(uuid.NAMESPACE_URL, name).bytes
facts = (text(name) + text("") + capacity() + pack("Q", 1) + text("agent") + text("python")
         + pack("QIHH", 1, 0, 1, 1) + text("") + text(""))
build = pack("B", 11) + b"launcher.py"
send(HELLO, pack("BBBQ", 1, 1, 0, epoch) + build + node + boot_id + pack("QI", 0, 0) + facts + pack("Q", 0))
while True:
    if tls.pending() or select.select([tls], [], [], 0.02)[0]:
        buffer += tls.recv(65536) or exit("the scheduler has closed the session")
    while len(buffer) >= 16 and len(buffer) >= (end := 16 + struct.unpack_from("<I", buffer, 4)[0]):
        _, kind, number, _, _, correlation = struct.unpack_from("<BBBBIQ", buffer)
        on_frame((kind, number), correlation, buffer[16:end])
        buffer = buffer[end:]
    for attempt in attempts.values(): attempt.watch()
    if welcome and time.monotonic() - asked > 1:  # a lease runs from the moment of asking
        asked = time.monotonic()
        send(READY, pack("QQ", epoch, applied) + capacity() + pack("QIQ", 1, 0, 0), time.monotonic_ns(), WANT_REPLY)
