# What a guest tries against its network's policy. It is root in the guest. Each attempt prints one line of JSON: its name and what it
# saw; whether anything got through, the world's own record says.
import http.client, json, os, random, socket, ssl, struct, sys, threading

LIMIT = 8  # seconds for any attempt
ALLOWED, FORBIDDEN, WILD, PORT = "93.184.216.34", "93.184.216.35", "93.184.216.36", "93.184.216.40"
DNS, OTHER_DNS, PRIVATE, METADATA = "93.184.216.53", "93.184.216.54", "10.77.0.5", "169.254.169.254"
ALLOWED6, FORBIDDEN6 = "2606:2800:220:1::34", "2606:2800:220:1::35"

attempts = []
def attempt(name):
    def register(f):
        attempts.append((name, f))
        return f
    return register

def tcp(address, port, data=b"", tls=None, read=4096):
    """Connects, says data, and returns what comes back. tls is a server name, or "" for none."""
    s = socket.create_connection((address, port), LIMIT)
    s.settimeout(LIMIT)
    if tls is not None:
        c = ssl.create_default_context()
        c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
        s = c.wrap_socket(s, server_hostname=tls or None)
    if data:
        s.sendall(data)
    out = b""
    while len(out) < read:
        try:
            b = s.recv(read)
        except TimeoutError:
            break
        if not b:
            break
        out += b
        if b"\r\n\r\n" in out and b"Content-Length" not in out:
            break
        head, sep, body = out.partition(b"\r\n\r\n")
        if sep:
            length = [int(l.split(b":")[1]) for l in head.split(b"\r\n") if l.lower().startswith(b"content-length")]
            if length and len(body) >= length[0]:
                break
    return out.decode("latin-1")

def get(host, path="/", extra=""):
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{extra}\r\n".encode()

def udp(address, port, data, family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(3)
    s.connect((address, port))
    s.send(data)
    return s.recv(4096).decode("latin-1")

def question(name, kind=1):
    q = struct.pack(">HHHHHH", random.randrange(65536), 0x100, 1, 0, 0, 1)
    for label in name.strip(".").split("."):
        q += bytes([len(label)]) + label.encode()
    return q + b"\0" + struct.pack(">HH", kind, 1) + b"\0" + struct.pack(">HHIH", 41, 1232, 0, 0)

def resolver():
    for line in open("/etc/resolv.conf"):
        if line.startswith("nameserver") and ":" not in line:
            return line.split()[1]

def ask(name, kind=1, server=None):
    """Asks a name server and returns the code, the number of answers, and any text of an extended error."""
    r = udp(server or resolver(), 53, question(name, kind)).encode("latin-1")
    code, count = r[3] & 15, struct.unpack(">H", r[6:8])[0]
    texts = [r[i + 6:].decode("latin-1", "replace") for i in range(len(r) - 6) if r[i:i + 2] == b"\0\x0f" and struct.unpack(">H", r[i + 2:i + 4])[0] == len(r) - i - 4]
    return {"code": code, "answers": count, "error": texts[:1]}

def hello(name):
    """A ClientHello for a server name, and no more."""
    c = ssl.create_default_context()
    c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    o = c.wrap_bio(a, b, server_hostname=name)
    try:
        o.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return b.read()

# What is allowed works.
@attempt("allowed-http")
def _(): return tcp("allowed.test", 80, get("allowed.test", "/allowed-http"))
@attempt("allowed-https")
def _(): return tcp("allowed.test", 443, get("allowed.test", "/allowed-https"), tls="allowed.test")
@attempt("allowed-https-ipv6")
def _(): return tcp(ALLOWED6, 443, get("allowed.test", "/v6"), tls="allowed.test") if socket.getaddrinfo("allowed.test", 443, socket.AF_INET6) else "none"
@attempt("allowed-wildcard")
def _(): return tcp("a.wild.test", 80, get("a.wild.test", "/wild"))
@attempt("allowed-address-and-port")
def _(): return tcp(PORT, 7777, b"to-the-port\n", read=12)
@attempt("allowed-lookup")
def _(): return ask("allowed.test")

# Names that are not allowed, and ways to have them resolved all the same.
@attempt("POLICY-01 lookup of a name that is not allowed")
def _(): return ask("forbidden.test")
@attempt("POLICY-02 data in the labels of a name")
def _(): return ask("c2VjcmV0LWRhdGE.tunnel.test", 16)
@attempt("POLICY-03 data below an allowed name that has no wildcard")
def _(): return ask("c2VjcmV0LWRhdGE.allowed.test")
@attempt("POLICY-04 the apex of a wildcard")
def _(): return ask("wild.test")
@attempt("POLICY-05 a second resolver by UDP")
def _(): return ask("forbidden.test", server=OTHER_DNS)
@attempt("POLICY-06 the host's own resolver, directly")
def _(): return ask("forbidden.test", server=DNS)
@attempt("POLICY-07 a second resolver by TCP")
def _():
    q = question("forbidden.test")
    return tcp(OTHER_DNS, 53, struct.pack(">H", len(q)) + q)
@attempt("POLICY-08 DNS over TLS")
def _(): return tcp(OTHER_DNS, 853, b"x", tls="dns.test")
@attempt("POLICY-09 DNS over HTTPS at an address without a name")
def _(): return tcp(OTHER_DNS, 443, get("dns.test", "/dns-query"), tls="dns.test")
@attempt("POLICY-10 an alias of a name that is not allowed")
def _(): return ask("alias.test")

# Addresses.
@attempt("POLICY-11 a raw address")
def _(): return tcp(FORBIDDEN, 80, get("forbidden.test", "/11"))
@attempt("POLICY-12 a raw address over IPv6")
def _(): return tcp(FORBIDDEN6, 80, get("forbidden.test", "/12"))
@attempt("POLICY-13 an IPv4 address in IPv6's clothes")
def _(): return tcp("::ffff:" + FORBIDDEN, 80, get("forbidden.test", "/13"))
@attempt("POLICY-14 NAT64")
def _(): return tcp("64:ff9b::" + FORBIDDEN, 80, get("forbidden.test", "/14"))
@attempt("POLICY-15 6to4")
def _(): return tcp("2002:5db8:d823::1", 80, get("forbidden.test", "/15"))
@attempt("POLICY-16 metadata")
def _(): return tcp(METADATA, 80, get(METADATA, "/latest/meta-data/"))
@attempt("POLICY-17 metadata under an allowed name")
def _(): return tcp("meta.test", 80, get("meta.test", "/latest/meta-data/"))
@attempt("POLICY-18 an allowed name that stands for a private address")
def _(): return tcp("rebind.test", 80, get("rebind.test", "/18"))
@attempt("POLICY-19 a private address")
def _(): return tcp(PRIVATE, 80, get("x", "/19"))
@attempt("POLICY-20 the host and its gateways")
def _():
    seen = []
    for a in sys.argv[1:] + ["127.0.0.1", "0.0.0.0"]:
        try:
            s = socket.create_connection((a, 22), 2)
            s.send(b"POLICY-20")
            seen.append([a, "connected", s.recv(64).decode("latin-1")])
        except OSError as e:
            seen.append([a, str(e)])
    return seen
@attempt("POLICY-21 another port of an allowed address")
def _(): return tcp(PORT, 8080, b"POLICY-21", read=9)
@attempt("POLICY-22 another port of an allowed name")
def _(): return tcp("allowed.test", 22, b"POLICY-22", read=9)

# What is said on a connection that an allowed name's address gave.
@attempt("POLICY-23 a forbidden server name at an allowed address")
def _(): return tcp(ALLOWED, 443, get("other.test", "/23"), tls="other.test")
@attempt("POLICY-24 no server name at an allowed address")
def _(): return tcp(ALLOWED, 443, get("other.test", "/24"), tls="")
@attempt("POLICY-25 an allowed server name at a forbidden address")
def _(): return tcp(FORBIDDEN, 443, get("allowed.test", "/25"), tls="allowed.test")
@attempt("POLICY-26 a forged Host at an allowed address")
def _(): return tcp(ALLOWED, 80, get("other.test", "/26"))
@attempt("POLICY-27 a forbidden Host in the second request")
def _():
    s = socket.create_connection((ALLOWED, 80), LIMIT); s.settimeout(LIMIT)
    s.sendall(get("allowed.test", "/27a") + get("other.test", "/27b"))
    out = b""
    try:
        while len(out) < 8192:
            b = s.recv(4096)
            if not b: break
            out += b
    except OSError: pass
    return out.decode("latin-1")
@attempt("POLICY-28 an absolute URI for another host")
def _(): return tcp(ALLOWED, 80, b"GET http://other.test/28 HTTP/1.1\r\nHost: allowed.test\r\n\r\n")
@attempt("POLICY-29 two Hosts")
def _(): return tcp(ALLOWED, 80, b"GET /29 HTTP/1.1\r\nHost: allowed.test\r\nHost: other.test\r\n\r\n")
@attempt("POLICY-30 CONNECT")
def _(): return tcp(ALLOWED, 80, b"CONNECT other.test:443 HTTP/1.1\r\nHost: other.test:443\r\n\r\n")
@attempt("POLICY-31 a request hidden in the body of another")
def _(): return tcp(ALLOWED, 80, b"POST /31 HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get("other.test", "/31b"))
@attempt("POLICY-32 something that is neither TLS nor HTTP")
def _(): return tcp(ALLOWED, 443, b"SSH-2.0-POLICY-32\r\n", read=16)
@attempt("POLICY-33 a ClientHello in pieces")
def _():
    s = socket.create_connection((ALLOWED, 443), LIMIT); s.settimeout(LIMIT)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for b in hello("other.test"):
        s.send(bytes([b]))
    return s.recv(64).hex()
@attempt("POLICY-34 a ClientHello in many records")
def _():
    h = hello("other.test")[5:]
    s = socket.create_connection((ALLOWED, 443), LIMIT); s.settimeout(LIMIT)
    for i in range(0, len(h), 16):
        part = h[i:i + 16]
        s.send(b"\x16\x03\x01" + struct.pack(">H", len(part)) + part)
    return s.recv(64).hex()
@attempt("POLICY-35 the beginning of HTTP/2 without TLS")
def _(): return tcp(ALLOWED, 80, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), read=9)
@attempt("POLICY-36 an upgrade, and then another protocol")
def _(): return tcp(ALLOWED, 80, get("other.test", "/36", "Upgrade: websocket\r\nConnection: Upgrade\r\n"))

# Other protocols.
@attempt("POLICY-37 QUIC to an allowed name")
def _(): return udp(ALLOWED, 443, b"\xc0\0\0\0\1POLICY-37")
@attempt("POLICY-38 UDP to a raw address")
def _(): return udp(FORBIDDEN, 7777, b"POLICY-38")
@attempt("POLICY-39 UDP to a raw address over IPv6")
def _(): return udp(FORBIDDEN6, 7777, b"POLICY-39", socket.AF_INET6)
def checksum(b):
    s = sum(struct.unpack(f">{len(b) // 2}H", b))
    s = (s >> 16) + (s & 0xffff)
    return ~(s + (s >> 16)) & 0xffff
@attempt("POLICY-40 an echo request with data")
def _():
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP); s.settimeout(2)
    b = struct.pack(">BBHHH", 8, 0, 0, 7, 1) + b"POLICY-40 "
    s.sendto(b[:2] + struct.pack(">H", checksum(b)) + b[4:], (FORBIDDEN, 0))
    return s.recv(256).hex()
def raw4(to, protocol, payload, frag=0, source=None):
    own = source or next(l.split()[0] for l in [socket.gethostbyname(socket.gethostname())])
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 7, frag, 64, protocol, 0, socket.inet_aton(own), socket.inet_aton(to))
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    s.sendto(head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload, (to, 0))
    return "sent"
def datagram(text, port=7777):
    return struct.pack(">HHHH", 4000, port, 8 + len(text), 0) + text
@attempt("POLICY-41 fragments")
def _():
    d = datagram(b"POLICY-41 " * 8)
    raw4(FORBIDDEN, 17, d[:32], 0x2000)
    return raw4(FORBIDDEN, 17, d[32:], 4)
@attempt("POLICY-42 overlapping fragments of an allowed datagram")
def _():
    raw4(PORT, 17, datagram(b"x" * 24)[:24], 0x2000)
    return raw4(FORBIDDEN, 17, datagram(b"POLICY-42"), 1)
@attempt("POLICY-43 GRE")
def _(): return raw4(FORBIDDEN, 47, b"\0\0\x08\0POLICY-43")
@attempt("POLICY-44 SCTP")
def _(): return raw4(ALLOWED, 132, b"POLICY-44   ")
@attempt("POLICY-45 IP in IP")
def _(): return raw4(ALLOWED, 4, b"E" + bytes(27))
@attempt("POLICY-46 a source address that is another's")
def _(): return raw4(PORT, 17, datagram(b"POLICY-46"), source="10.88.0.9")
@attempt("POLICY-47 a frame from another MAC address")
def _():
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0))
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + 17, 7, 0, 64, 17, 0, socket.inet_aton("10.88.0.9"), socket.inet_aton(FORBIDDEN))
    s.send(b"\xff" * 6 + b"\x02\0\0\0\0\x09" + b"\x08\0" + ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:] + datagram(b"POLICY-47"))
    return "sent"
@attempt("POLICY-48 a VLAN tag")
def _():
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0))
    mac = bytes.fromhex(open("/sys/class/net/eth0/address").read().strip().replace(":", ""))
    s.send(b"\xff" * 6 + mac + b"\x81\0\0\x07\x08\0" + bytes(46))
    return "sent"
@attempt("POLICY-49 a source route")
def _():
    s = socket.socket(); s.settimeout(3)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x83\x07\x04" + socket.inet_aton(FORBIDDEN) + b"\0")
    s.connect((PORT, 7777)); s.send(b"POLICY-49")
    return "sent"
@attempt("POLICY-50 an address of the Internet's multicast")
def _(): return udp("224.0.0.251", 5353, b"POLICY-50")
@attempt("POLICY-51 a thousand connections to a raw address at once")
def _():
    made = []
    def one():
        try:
            socket.create_connection((FORBIDDEN, 7777), 2).send(b"POLICY-51"); made.append(1)
        except OSError: pass
    all = [threading.Thread(target=one) for _ in range(200)]
    for t in all: t.start()
    for t in all: t.join()
    return len(made)
# The resolver's own grammar, and names as only some programs read them.
def each(tries):
    """What came of several tries; one that fails does not end the rest."""
    seen = []
    for f in tries:
        try:
            seen.append(f())
        except OSError as e:
            seen.append(str(e))
    return seen
def send_query(raw, server=None, network="udp"):
    if network == "tcp":
        return tcp(server or resolver(), 53, struct.pack(">H", len(raw)) + raw).encode("latin-1").hex()
    return udp(server or resolver(), 53, raw).encode("latin-1").hex()
def labels(*parts):
    return b"".join(bytes([len(p)]) + p for p in parts) + b"\0"
def plain(name, kind=1, klass=1, flags=0x100, count=1, more=b""):
    return struct.pack(">HHHHHH", random.randrange(65536), flags, count, 0, 0, 0) + name + struct.pack(">HH", kind, klass) + more
FORBIDDEN_NAME, ALLOWED_NAME = labels(b"forbidden", b"test"), labels(b"allowed", b"test")
@attempt("POLICY-52 two questions in one query")
def _(): return send_query(plain(ALLOWED_NAME, count=2, more=FORBIDDEN_NAME + struct.pack(">HH", 1, 1)))
@attempt("POLICY-53 a query that says it is an answer")
def _(): return send_query(plain(FORBIDDEN_NAME, flags=0x8100))
@attempt("POLICY-54 a query of another class")
def _(): return each([lambda: send_query(plain(FORBIDDEN_NAME, klass=3)), lambda: send_query(plain(FORBIDDEN_NAME, klass=255))])
@attempt("POLICY-55 a dot, a zero and a space within a label")
def _(): return each([lambda: send_query(plain(labels(b"x.allowed", b"test"))), lambda: send_query(plain(labels(b"x\0allowed", b"test"))), lambda: send_query(plain(labels(b"x allowed", b"test")))])
@attempt("POLICY-56 a name in capitals, and by TCP")
def _(): return each([lambda: send_query(plain(labels(b"FORBIDDEN", b"Test"))), lambda: send_query(plain(FORBIDDEN_NAME), network="tcp")])
@attempt("POLICY-57 types that carry keys, services and everything")
def _(): return each([lambda k=k: send_query(plain(FORBIDDEN_NAME, kind=k)) for k in (64, 65, 255, 10, 252, 16, 12, 33)] + [lambda: send_query(plain(ALLOWED_NAME, kind=65))])
@attempt("POLICY-58 data in a reverse name")
def _(): return each([lambda: send_query(plain(labels(b"c2VjcmV0", b"34", b"216", b"184", b"93", b"in-addr", b"arpa"), kind=12)), lambda: send_query(plain(labels(*([b"1"] * 32 + [b"ip6", b"arpa"])), kind=12))])
@attempt("POLICY-59 a pointer to itself in a query")
def _(): return send_query(plain(b"\xc0\x0c"))
@attempt("POLICY-60 an update and a notification")
def _(): return each([lambda: send_query(plain(FORBIDDEN_NAME, flags=0x2800)), lambda: send_query(plain(FORBIDDEN_NAME, flags=0x2000))])

# Hosts and server names as only some programs read them.
@attempt("POLICY-61 an address for a Host")
def _(): return each([lambda: tcp(ALLOWED, 80, get(ALLOWED, "/61")), lambda: tcp(ALLOWED, 80, get("1572395042", "/61")), lambda: tcp(ALLOWED, 80, get("0x5d.0xb8.0xd8.0x22", "/61"))])
@attempt("POLICY-62 no Host")
def _(): return each([lambda: tcp(ALLOWED, 80, b"GET /62 HTTP/1.0\r\n\r\n"), lambda: tcp(ALLOWED, 80, b"GET /62 HTTP/1.1\r\n\r\n"), lambda: tcp(ALLOWED, 80, b"GET /62\r\n")])
@attempt("POLICY-63 another Host behind a fold, a blank and a carriage return")
def _(): return each([lambda x=x: tcp(ALLOWED, 80, b"GET /63 HTTP/1.1\r\nHost: allowed.test\r\n" + x + b"\r\n\r\n") for x in (b" other.test", b"Host : other.test", b"X: 1\rHost: other.test", b"\nHost: other.test")])
@attempt("POLICY-64 a Host with another's name in it")
def _(): return each([lambda x=x: tcp(ALLOWED, 80, b"GET /64 HTTP/1.1\r\nHost: " + x + b"\r\n\r\n") for x in (b"other.test:80@allowed.test", b"allowed.test@other.test", b"other.test#allowed.test", b"allowed.test/../other.test", b"other.test, allowed.test", b"other.test\x00.allowed.test", b"allowed.test..")])
@attempt("POLICY-65 an empty line before the request")
def _(): return tcp(ALLOWED, 80, b"\r\n\r\n" + get("other.test", "/65"))
@attempt("POLICY-66 server names that are nearly allowed")
def _():
    names = ("xallowed.test", "allowed.test.other.test", "wild.test", "x.allowed.test", "93.184.216.34")
    return each([lambda name=name: tcp(ALLOWED, 443, get("other.test", "/66"), tls=name) for name in names])
@attempt("POLICY-67 server names with zeros in them")
def _():
    seen, h = [], hello("allowed.test")
    for name in (b"other\0d.test", b"other.test\0\0"):
        s = socket.create_connection((ALLOWED, 443), LIMIT); s.settimeout(LIMIT)
        s.sendall(h.replace(b"allowed.test", name))
        seen.append(s.recv(64).hex())
        s.close()
    return seen
@attempt("POLICY-68 an encrypted ClientHello under an allowed name")
def _():
    # In capitals, so that it is seen in the world's record if it gets there: the name itself may.
    h = bytearray(hello("allowed.test").replace(b"allowed.test", b"ALLOWED.test"))
    extension = struct.pack(">HH", 0xfe0d, 11) + b"\0" + b"\0\1\0\1" + b"\7" + b"\0\0" + b"\0\1x"
    at = 5 + 4 + 2 + 32
    at += 1 + h[at]                              # the session
    at += 2 + struct.unpack(">H", h[at:at + 2])[0]  # the suites
    at += 1 + h[at]                              # the compressions
    h[at:at + 2] = struct.pack(">H", struct.unpack(">H", h[at:at + 2])[0] + len(extension))
    h[at + 2:at + 2] = extension
    n = len(h) - 9
    h[3:5], h[6:9] = struct.pack(">H", n + 4), struct.pack(">I", n)[1:]
    s = socket.create_connection((ALLOWED, 443), LIMIT); s.settimeout(LIMIT)
    s.sendall(bytes(h))
    return s.recv(64).hex()
@attempt("POLICY-69 an allowed address by another's name that it was never given for")
def _(): return tcp(WILD, 443, get("allowed.test", "/69"), tls="allowed.test")
@attempt("still-allowed")
def _(): return tcp("allowed.test", 80, get("allowed.test", "/still"))

for name, f in attempts:
    try:
        seen = f()
    except Exception as e:
        seen = f"{type(e).__name__}: {e}"
    print(json.dumps({"name": name, "seen": seen}), flush=True)
