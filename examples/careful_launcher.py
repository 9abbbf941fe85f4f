#!/usr/bin/env python3
"""A launcher that keeps the rules, written from PROTOCOL.md alone: it joins a cluster and runs plain commands.

    careful_launcher.py --address HOST:PORT --cert node.crt --key node.key --ca ca.crt

It keeps nothing on disk, so its workloads end with it and its boot id is new at each start. It
enforces no limits and serves no streams. Its node's name is the one in the certificate.
"""
import argparse, ctypes, os, re, select, signal, socket, ssl, struct, subprocess, time, uuid

HELLO, START, STOP, DELETE, SET_MODE = (1, 1), (1, 2), (1, 3), (1, 4), (1, 5)
INVENTORY, ACK, PING, READY, MAINTENANCE = (1, 7), (1, 8), (1, 16), (2, 1), (2, 3)
INSTANCE_CHANGED, INVENTORY_PAGE, UNSUPPORTED = (3, 5), (3, 6), (4, 7)
WELCOME, DONE, LEASE, PONG = (5, 1), (5, 2), (5, 4), (5, 6)
WANT_REPLY, LAST, RUNNING, ENDED = 1, 2, 2, 3
EXITED, SIGNALED, STOPPED, CANNOT_EXECUTE, REJECTED = 0, 1, 4, 6, 7

def pack(layout, *values): return struct.pack("<" + layout, *values)
def text(string): return pack("Q", len(string.encode())) + string.encode()
def now_ns(): return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
def number_of(id): return struct.unpack("<I", id[32:])[0]  # id: owner, instance, number of the attempt

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
    def optional(self, read): return read() if self.number("B") else None

class Attempt:
    """One attempt to run an instance: its demand, its process, what is said of it until ACK."""
    def __init__(self, id, demand):
        self.id, self.demand, self.began_ns, self.kill_ns, self.version = id, demand, now_ns(), None, 0
        self.end, self.started, self.ended = b"\0", b"\0", b"\0"  # absent so far

    def change(self, phase, cause=None, *code, message=""):
        self.version, self.phase, after = self.version + 1, phase, pack("BQ", 1, now_ns() - self.began_ns)
        if phase == RUNNING: self.started = after
        else: self.ended, self.end = after, b"\1" + pack("I" + "i" * len(code), cause, *code) + text(message)
        print(self.id[16:32].hex(), "runs" if phase == RUNNING else f"ended: {cause} {code} {message}", flush=True)
        self.report()

    def state(self):
        return (self.id + pack("QI", self.version, self.phase) + self.end + pack("Q", now_ns() - self.began_ns)
                + self.started + self.ended + bytes(36))  # usage is not measured

    def report(self):
        self.reported_ns = now_ns()
        send(INSTANCE_CHANGED, self.state())

    def run(self, read):
        tenant, name, _workload, _exec = read.text(), read.text(), read.text(), read.number("I")
        command, workdir, user = read.list(read.text), read.optional(read.text), read.optional(read.text)
        read.optional(lambda: read.raw(4)), read.optional(lambda: read.raw(4))  # limit of processes, umask
        special, env = any(read.raw(2)), dict(read.list(lambda: (read.text(), read.text())))
        timeout_ms, self.grace_ms, on_disconnect = read.optional(read.number), read.number(), read.number("I")
        if user or special or timeout_ms or on_disconnect:
            return self.change(ENDED, REJECTED, message="only plain commands run here")
        env = {"PATH": os.defpath, "PRONTO_TENANT": tenant, "PRONTO_NAME": name, "PRONTO_NODE": NAME,
               "PRONTO_INSTANCE": str(uuid.UUID(bytes=self.id[16:32])),
               "PRONTO_ATTEMPT": str(number_of(self.id)), **env}
        try:
            self.process = subprocess.Popen(command, cwd=workdir, env=env, stdin=subprocess.DEVNULL,
                                            start_new_session=True, preexec_fn=end_with_us)
            self.change(RUNNING)
        except OSError as error:
            self.change(ENDED, CANNOT_EXECUTE, 127 if error.errno == 2 else 126, message=str(error))

    def stop(self, grace_ms):
        if self.phase == ENDED or self.kill_ns: return
        self.kill_ns = now_ns() + 10**6 * (self.grace_ms if grace_ms is None else grace_ms)
        os.killpg(self.process.pid, signal.SIGTERM)

    def watch(self):
        if self.phase == ENDED and now_ns() - self.reported_ns > 5 * 10**9: self.report()
        elif self.phase == RUNNING and (code := self.process.poll()) is not None:
            if self.kill_ns: self.change(ENDED, STOPPED)
            else: self.change(ENDED, *((EXITED, code) if code >= 0 else (SIGNALED, -code)))
        elif self.phase == RUNNING and self.kill_ns and now_ns() > self.kill_ns:
            os.killpg(self.process.pid, signal.SIGKILL)

def capacity(used=(0, 0, 0)):  # thousandths of a core, MiB of memory, MiB of disk; no GPUs, no named resources
    return pack("IIIQQ", *(have - taken for have, taken in zip(WHOLE, used)), 0, 0)

def send_ready():  # the correlation id is the moment of asking, from which the lease runs
    used = [sum(column) for column in zip((0, 0, 0), *(a.demand for a in attempts.values() if a.phase != ENDED))]
    send(MAINTENANCE if mode else READY, pack("QQ", epoch, applied_seq) + capacity(used) + pack("QIQ", 1, 0, 0),
         now_ns(), WANT_REPLY)

def on_start(read):
    global applied_seq
    session, applied_seq, _term = read.number(), read.number(), read.number()
    read.list(lambda: read.raw(4))  # GPUs
    id, _controller_epoch, schema, runtime = read.raw(36), read.number(), read.number("H"), read.number("I")
    if id in attempts: return attempts[id].report()
    attempt = attempts[id] = Attempt(id, struct.unpack("<III4x", read.raw(16)))
    read.list(lambda: (read.text(), read.number("I")))  # named resources
    read.list(lambda: [read.text() for _ in range(read.number("I") + 1)])  # constraints
    read.optional(read.text), read.list(read.text)  # nodes to prefer and to avoid
    if tombstones.get(id[:32], 0) >= number_of(id): attempt.change(ENDED, STOPPED)
    elif session != epoch or now_ns() > lease_ns or mode:
        attempt.change(ENDED, REJECTED, message="no lease, or in maintenance")
    elif (schema, runtime) != (1, 0): attempt.change(ENDED, REJECTED, message="only exec runs here")
    else: attempt.run(read)

def on_frame(operand, correlation, payload):
    global lease_ns, mode
    read = Reader(payload)
    if operand == LEASE and read.number() > 0: lease_ns = correlation + 10**6 * read.number()
    elif operand == START: on_start(read), send_ready()
    elif operand in (STOP, DELETE):
        instance, last, grace_ms = read.raw(32), 2**32 - 1, None
        if operand == STOP: last, grace_ms = read.number("I"), read.optional(read.number)
        tombstones[instance] = max(last, tombstones.get(instance, 0))  # a START still under way can't run
        for id, attempt in list(attempts.items()):
            if id[:32] != instance or number_of(id) > last: continue
            if operand == DELETE and attempt.phase == ENDED: del attempts[id]
            else: attempt.stop(grace_ms)
        send(DONE, b"", correlation)
    elif operand == SET_MODE:
        mode = read.number("I")
        send(DONE, b"", correlation), send_ready()
    elif operand == ACK:
        id, version = read.raw(36), read.number()
        if id in attempts and attempts[id].phase == ENDED and attempts[id].version <= version: del attempts[id]
    elif operand == INVENTORY:
        kept = [attempt.state() for id, attempt in attempts.items() if id[:16] == payload]
        page = payload + boot_id + pack("QQIQ", epoch, applied_seq, 0, len(kept)) + b"".join(kept)
        send(INVENTORY_PAGE, page, correlation, LAST)
    elif operand == PING: send(PONG, payload, correlation)
    elif operand[0] == 4: print("the scheduler says:", payload[4:].decode(errors="replace"), flush=True)
    elif operand[0] == 1: send(UNSUPPORTED, pack("HH", 0, 8) + b"not here", correlation)

def frames():
    """The frames as they come, and None where none has come for 20 ms."""
    buffer = b""
    while True:
        if not tls.pending() and not select.select([tls], [], [], 0.02)[0]: yield None
        elif received := tls.recv(65536): buffer += received
        else: raise SystemExit("the scheduler has closed the session")
        while len(buffer) >= 16 and len(buffer) >= (end := 16 + struct.unpack_from("<I", buffer, 4)[0]):
            _version, *operand, _flags, _length, correlation = struct.unpack_from("<BBBBIQ", buffer)
            yield tuple(operand), correlation, buffer[16:end]
            buffer = buffer[end:]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for option in ("--address", "--cert", "--key", "--ca"): parser.add_argument(option, required=True)
options, libc = parser.parse_args(), ctypes.CDLL(None)
certificate = ssl.PEM_cert_to_DER_cert(open(options.cert).read())
uri = re.search(rb"\x86(.)(spiffe://.+)", certificate, re.DOTALL)  # a URI of a subjectAltName: tag, length, text
_, _, _, role, NAME = uri[2][:uri[1][0]].decode().split("/") if uri else [""] * 5
if role != "launcher": raise SystemExit(f"{options.cert} is not a launcher's certificate")
def end_with_us(): libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.minimum_version, context.check_hostname = ssl.TLSVersion.TLSv1_3, False  # names are URIs, not hosts
context.load_verify_locations(options.ca)
context.load_cert_chain(options.cert, options.key)
host, port = options.address.rsplit(":", 1)
tls = context.wrap_socket(socket.create_connection((host, int(port))))
uris = [name for kind, name in tls.getpeercert()["subjectAltName"] if kind == "URI"]
if len(uris) != 1 or uris[0].split("/")[3] != "scheduler": raise SystemExit(f"not a scheduler: {uris}")

WHOLE = (1000 * os.cpu_count(), 1024, 4096)
attempts, tombstones, mode, applied_seq, lease_ns, asked_ns = {}, {}, 0, 0, 0, None
epoch, boot_id = time.time_ns(), uuid.uuid4().bytes
node_uuid = uuid.uuid5(uuid.NAMESPACE_URL, NAME).bytes
facts = (text(NAME) + text("") + capacity() + pack("Q", 1) + text("agent") + text("python")
         + pack("QIHH", 1, 0, 1, 1) + text("") + text(""))
build = pack("B", 11) + b"launcher.py"
send(HELLO, pack("BBBQ", 1, 1, 0, epoch) + build + node_uuid + boot_id + pack("QI", 0, 0) + facts + pack("Q", 0))
for frame in frames():
    if frame and frame[0] == WELCOME: asked_ns = print(NAME, "joined", options.address, flush=True) or 0
    elif frame: on_frame(*frame)
    for attempt in list(attempts.values()): attempt.watch()
    if asked_ns is not None and now_ns() - asked_ns > (10**9 if now_ns() < lease_ns else 2 * 10**8):
        asked_ns = now_ns()
        send_ready()
