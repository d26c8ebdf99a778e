#!/bin/bash
# Install identree's agent on this host, or bring it up to date. Run it as root:
#
#   bash install.sh https://identree.example.com
#
# It is the same for everybody and holds nothing of any server, so that one signature is good for all. Verify that first:
#
#   identree verify-install --key install.pub --script install.sh --sig install.sh.sig
#
# What it takes from the environment:
#   IDENTREE_ENROL_TOKEN     one-time token of this host (identree enrol HOSTNAME); it is turned into a secret
#   IDENTREE_SHARED_SECRET   the secret instead; without either, what /etc/identree/client.conf holds stays
#   IDENTREE_HOSTNAME        the name of this host at the server, where it is not the kernel's
#   IDENTREE_CA_CERT         PEM file of the CA that signed the server's certificate, where the system does not know it
#   IDENTREE_VERIFY_KEY      PEM file of the public key (install.pub): the agent's checksum must be signed with it
#   IDENTREE_PYTHON          the Python for the agent, 3.9 or newer; without, the system's
#   IDENTREE_INSECURE_ALLOW_HTTP_ESCROW=true   permits an http:// address, over which the network could approve
#   SETUP_SSSD=1             people, groups and sudo rules from identree, through sssd
#   IDENTREE_PAM_MODE        sole (the default) or additional; see identree setup --help
#
# Nothing on the host is changed before everything is fetched, verified and tried. PAM comes last. If a step fails, what
# was done before is taken back.

set -euo pipefail

AGENT=/usr/local/bin/identree
PREVIOUS=$AGENT.previous
CONF_DIRECTORY=/etc/identree
CONF=$CONF_DIRECTORY/client.conf
SHEBANG='#!/usr/bin/python3 -ISB'
# Seconds for one download, and for a connection to come about.
FETCH_SECONDS=300
CONNECT_SECONDS=15
# The agent is some hundred kilobytes.
MAX_BYTES=33554432
# Not a place that others can open: whoever can open a file can lock it, and would keep installations away.
LOCK=/run/identree-installing

WORK=
PYTHON=
CODE=
CONF_BEFORE=      # a copy of client.conf, or "none"
ENROLLED=
KEEP_CONF=        # the secret in it cannot be had again
MADE_DIRECTORY=
AGENT_BEFORE=     # "none", "same" or "saved"
PREVIOUS_BEFORE=
PAM_BEFORE=       # sudo ran the agent before this began
LOCKED=
FINISHED=

say() { printf 'identree: %s\n' "$*"; }
warn() { printf 'identree: warning: %s\n' "$*" >&2; }
die() {
  printf 'identree: %s\n' "$*" >&2
  exit 1
}

# Whether there is such a program, and it may be run.
have() {
  local program
  program=$(type -P "$1") && [ -x "$program" ]
}

# What ends the script in the middle of things takes them back.
leave() {
  local status=$?
  trap - EXIT
  # whatever fails from here on, the rest is to be done as well
  set +e
  if [ -z "$FINISHED" ] && [ "$status" -ne 0 ]; then
    take_back
  fi
  if [ -n "$WORK" ]; then
    rm -rf -- "$WORK"
  fi
  # while it is still locked
  if [ -n "$LOCKED" ]; then
    rm -f -- "$LOCK"
  fi
  exit "$status"
}

# Whether sudo runs the agent: it must not be without it for a moment.
pam_runs_agent() { grep -Eqs "^[[:space:]]*[^#[:space:]].*$AGENT" /etc/pam.d/*; }

take_back() {
  local undone=
  if [ -z "$PAM_BEFORE" ] && pam_runs_agent; then
    # interrupted at the very end, or identree setup could not take everything back
    rm -f -- "$AGENT".new-*
    warn "PAM runs the agent already, so it stays, and so does its configuration. Run this again to complete it, or" \
      "identree setup --remove to take everything out"
    return
  fi
  case $AGENT_BEFORE in
    none) rm -f -- "$AGENT" && undone=1 ;;
    saved) mv -f -- "$PREVIOUS" "$AGENT" && undone=1 ;;
  esac
  if [ -n "$PREVIOUS_BEFORE" ]; then
    mv -f -- "$PREVIOUS_BEFORE" "$PREVIOUS"
  fi
  rm -f -- "$AGENT".new-*
  if [ -n "$KEEP_CONF" ]; then
    warn "$CONF is kept, because the enrolment token is used up; run this again without it"
  elif [ "$CONF_BEFORE" = none ]; then
    rm -f -- "$CONF" && undone=1
  elif [ -n "$CONF_BEFORE" ]; then
    python restore "$CONF_BEFORE" "$CONF" && undone=1
  fi
  if [ -n "$MADE_DIRECTORY" ] && [ -z "$KEEP_CONF" ]; then
    rmdir -- "$CONF_DIRECTORY" 2>/dev/null
  fi
  if [ -n "$undone" ]; then
    warn "what was done before is taken back; the host is as it was"
  fi
}

# -- Python ------------------------------------------------------------------------------------------------------------
# The agent needs it, so it is there; it does here what a shell does badly. The program is an argument: it holds nothing
# secret, and secrets go to it in files.
python() { "$PYTHON" -IS -c "$PROGRAM" "$@" </dev/null; }

# shellcheck disable=SC2016  # it is not the shell's to expand
PROGRAM='
import hashlib, os, re, sys

def read(path, limit=1 << 26):
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        fail(path + " is too large")
    return data

def fail(text):
    sys.stderr.write("identree: " + text + "\n")
    sys.exit(1)

def replace(path, data, mode, uid=0, gid=0):
    temporary = "%s.new-%s" % (path, os.urandom(6).hex())
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view):]
            if (uid, gid) != (os.geteuid(), os.getegid()):
                os.fchown(fd, uid, gid)
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    fd = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

def assignment(line):
    """Key and value of a line of client.conf, as the agent reads it."""
    line = line.strip()
    if line.startswith("export "):
        line = line[7:].strip()
    key, equals, value = line.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or key.startswith("#"):
        return "", ""
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"\x27":
        value = value[1:-1]
    return key, value

def text(path):
    try:
        return read(path, 65536).decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""

def conf(path, key):
    found = ""
    for line in text(path).split("\n"):
        name, value = assignment(line)
        if name == key:
            found = value
    return found

def clean(value, length=300):
    return "".join(c if c.isprintable() else "?" for c in value[:length])

def members(path):
    import json
    try:
        found = json.loads(read(path, 65536).decode())
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    return {}

def command_get(path, key):
    sys.stdout.write(conf(path, key))

def command_json(path, key):
    value = members(path).get(key, "")
    if isinstance(value, str):
        sys.stdout.write(clean(value))

def command_json_file(path, key, out):
    """Something secret: from file to file."""
    value = members(path).get(key, "")
    if not isinstance(value, str) or not value:
        fail("the server gave no " + key)
    replace(out, value.encode(), 0o600)

def command_member(key, source, out):
    """A JSON body of one secret and one name."""
    import json
    replace(out, json.dumps({"token": read(source, 4096).decode(), "hostname": key}).encode(), 0o600)

def command_url(value):
    match = re.fullmatch(r"(https?)://([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?", value)
    if match is None:
        fail("%r is no address of a server; give one such as https://identree.example.com" % clean(value))

def command_digest(path, name):
    line = read(path, 4096).decode("ascii", "replace")
    match = re.fullmatch(r"([0-9a-f]{64})  (\S+)\n?", line)
    if match is None or match[2] != name:
        fail("the server gave no checksum of " + name)
    sys.stdout.write(match[1])

def without_shebang(data):
    if not data.startswith(b"#!") or b"\n" not in data[:256]:
        fail("the agent does not begin as it should")
    return data[data.index(b"\n") + 1:]

def command_same(path, shebang, digest):
    """Whether the installed agent is what the server has, but for its first line."""
    try:
        data = read(path)
    except OSError:
        sys.exit(1)
    if not data.startswith(b"#!") or b"\n" not in data[:256]:
        sys.exit(1)
    data = shebang.encode() + b"\n" + without_shebang(data)
    sys.exit(hashlib.sha256(data).hexdigest() != digest)

def command_check(path, digest):
    found = hashlib.sha256(read(path)).hexdigest()
    if found != digest:
        fail("the checksum of the agent is wrong: expected %s, got %s. Nothing was changed; fetch it again, and if "
             "that does not help, tell whoever runs the server" % (digest, found))

def command_shebang(source, line, out):
    data = line.encode() + b"\n" + without_shebang(read(source))
    replace(out, data, 0o755, os.geteuid(), os.getegid())

def command_install(source, path):
    replace(path, read(source), 0o755)

def command_equal(one, other):
    try:
        sys.exit(read(one) != read(other) or os.stat(other).st_mode & 0o7777 != 0o755)
    except OSError:
        sys.exit(1)

def command_restore(source, path):
    info = os.stat(source)
    replace(path, read(source), info.st_mode & 0o7777, info.st_uid, info.st_gid)

def command_merge(path, *changes):
    """Each change is KEY=FILE: the value is the content of the file. Only these keys change."""
    wanted = {}
    for change in changes:
        key, _, source = change.partition("=")
        value = read(source, 4096).decode("utf-8", "surrogateescape")
        if not value or any(ord(c) < 32 or ord(c) == 127 for c in value):
            fail(key + " is empty, or has characters that a line cannot hold")
        quotes = value[0] in "\"\x27" or value != value.strip()
        wanted[key] = "%s=%s\n" % (key, "\"" + value + "\"" if quotes else value)
    before = text(path)
    lines, out = before.splitlines(True), []
    last = {assignment(line)[0]: i for i, line in enumerate(lines)}
    for i, line in enumerate(lines):
        key = assignment(line)[0]
        if key not in wanted:
            out.append(line)
        elif last[key] == i:
            # one that says the same stays as it is
            same = assignment(line) == assignment(wanted[key])
            out.append(line if same else wanted[key])
            del wanted[key]
    if wanted and out and not out[-1].endswith("\n"):
        out[-1] += "\n"
    after = "".join(out + list(wanted.values()))
    if after != before or not os.path.exists(path) or os.stat(path).st_mode & 0o077 or os.stat(path).st_uid:
        replace(path, after.encode("utf-8", "surrogateescape"), 0o600)

def command_fetch(url, out, header, data, ca, limit, seconds):
    """Without curl and wget. Prints the status."""
    import ssl, urllib.error, urllib.request
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, request, fp, code, message, headers, to):
            if header or data or (url.startswith("https://") and not to.startswith("https://")):
                return None
            return super().redirect_request(request, fp, code, message, headers, to)
    context = ssl.create_default_context(cafile=ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    opener = urllib.request.build_opener(Stay, urllib.request.HTTPSHandler(context=context))
    request = urllib.request.Request(url, data=read(data, 65536) if data else None)
    if data:
        request.add_header("Content-Type", "application/json")
    if header:
        for line in read(header, 65536).decode("latin-1").splitlines():
            name, _, value = line.partition(": ")
            request.add_header(name, value)
    try:
        answer = opener.open(request, timeout=float(seconds))
    except urllib.error.HTTPError as e:
        answer = e
    except (OSError, ValueError) as e:
        fail("%s: %s" % (url, clean(str(getattr(e, "reason", e)))))
    body = answer.read(int(limit) + 1)
    if len(body) > int(limit):
        fail(url + ": the answer is too large")
    replace(out, body, 0o600)
    sys.stdout.write(str(answer.status))

def command_quote(source, name, style):
    """A header as curl or wget read it from a file."""
    value = read(source, 4096).decode("latin-1")
    if any(not 32 <= ord(c) < 127 for c in value) or value != value.strip():
        fail("the secret must consist of printable ASCII characters, without blanks around it. Nothing was changed")
    if style == "curl":
        value = value.replace("\\", "\\\\").replace("\"", "\\\"")
        sys.stdout.buffer.write(("header = \"%s: %s\"\n" % (name, value)).encode("latin-1"))
    elif style == "wget":
        sys.stdout.buffer.write(("header = %s: %s\n" % (name, value)).encode("latin-1"))
    else:
        sys.stdout.buffer.write(("%s: %s\n" % (name, value)).encode("latin-1"))

def command_verify(key, path, signature):
    """Ed25519 (RFC 8032 section 5.1.7). Everything in it is public, so it need not hide how long it takes."""
    import base64
    p, order = 2 ** 255 - 19, 2 ** 252 + 27742317777372353535851937790883648493
    d = -121665 * pow(121666, p - 2, p) % p
    def decode(raw):
        y = int.from_bytes(raw, "little")
        sign, y = y >> 255, y & (1 << 255) - 1
        if y >= p:
            return None
        square = (y * y - 1) * pow(d * y * y + 1, p - 2, p) % p
        x = pow(square, (p + 3) // 8, p)
        if (x * x - square) % p:
            x = x * pow(2, (p - 1) // 4, p) % p
        if (x * x - square) % p or (not x and sign):
            return None
        if x & 1 != sign:
            x = p - x
        return x, y, 1, x * y % p
    def add(a, b):
        m, n = (a[1] - a[0]) * (b[1] - b[0]) % p, (a[1] + a[0]) * (b[1] + b[0]) % p
        t, z = 2 * a[3] * b[3] * d % p, 2 * a[2] * b[2] % p
        e, f, g, h = n - m, z - t, z + t, n + m
        return e * f % p, g * h % p, f * g % p, e * h % p
    def times(k, point):
        result = 0, 1, 1, 0
        while k:
            if k & 1:
                result = add(result, point)
            point, k = add(point, point), k >> 1
        return result
    def encode(point):
        inverse = pow(point[2], p - 2, p)
        x, y = point[0] * inverse % p, point[1] * inverse % p
        return (y | (x & 1) << 255).to_bytes(32, "little")
    pem = re.findall(r"-----BEGIN (ED25519 PUBLIC KEY|PUBLIC KEY)-----\s+([A-Za-z0-9+/=\s]+?)-----END \1-----",
                     read(key, 65536).decode("ascii", "replace"))
    if len(pem) != 1:
        fail(key + " holds no public key in PEM form")
    raw = base64.b64decode("".join(pem[0][1].split()))
    head = bytes.fromhex("302a300506032b6570032100")
    if pem[0][0] == "PUBLIC KEY" and raw.startswith(head):
        raw = raw[len(head):]
    sent = read(signature, 1024).decode("ascii", "replace").strip().rstrip("=")
    good = False
    if len(raw) == 32 and re.fullmatch("[A-Za-z0-9+/]{86}", sent):
        proof = base64.b64decode(sent + "==")
        point, s = decode(raw), int.from_bytes(proof[32:], "little")
        if point and times(8, point)[0] % p and s < order:
            h = int.from_bytes(hashlib.sha512(proof[:32] + raw + read(path)).digest(), "little") % order
            base = decode((4 * pow(5, p - 2, p) % p).to_bytes(32, "little"))
            negative = p - point[0], point[1], 1, p - point[3]
            good = encode(add(times(s, base), times(h, negative))) == proof[:32]
    if not good:
        fail("the checksum of the agent is NOT signed with the key in " + key + ". Nothing was changed. Do not go on; "
             "ask whoever holds the key")

globals()["command_" + sys.argv[1]](*sys.argv[2:])
'

# The newest are not better: the system's own survives its upgrades, others come and go.
find_python() {
  local candidate candidates
  if [ -n "${IDENTREE_PYTHON:-}" ]; then
    case $IDENTREE_PYTHON in
      /*[[:space:]]*) die "IDENTREE_PYTHON must not contain blanks" ;;
      /*) candidates=("$IDENTREE_PYTHON") ;;
      *) die "IDENTREE_PYTHON must be an absolute path" ;;
    esac
  else
    candidates=(
      /usr/bin/python3 /usr/bin/python3.9 /usr/bin/python3.10 /usr/bin/python3.11 /usr/bin/python3.12
      /usr/bin/python3.13 /usr/bin/python3.14 /usr/libexec/platform-python
    )
  fi
  for candidate in "${candidates[@]}"; do
    if [ -x "$candidate" ] && "$candidate" -IS -c \
      'import sys, ssl, json, hmac, zlib; sys.exit(sys.version_info < (3, 9))' </dev/null >/dev/null 2>&1; then
      PYTHON=$candidate
      SHEBANG_HERE="#!$candidate -ISB"
      # the kernel reads so much of the first line (older ones; BINPRM_BUF_SIZE)
      if [ ${#SHEBANG_HERE} -gt 126 ]; then
        die "the path of $candidate is too long for the first line of a program"
      fi
      return
    fi
  done
  if [ -n "${IDENTREE_PYTHON:-}" ]; then
    die "$IDENTREE_PYTHON is no Python 3.9 or newer with its ssl module"
  fi
  die "the agent needs Python 3.9 or newer with its ssl module, and this host has none. On RHEL 8: dnf install python39;" \
    "on Ubuntu 20.04: apt-get install python3.9; elsewhere name one in IDENTREE_PYTHON"
}

# -- fetching ----------------------------------------------------------------------------------------------------------
# fetch URL OUT [HEADERS [BODY]]: the status of the answer in CODE. HEADERS and BODY are files, so that no secret shows
# among the arguments of a process. What carries one follows no redirect.
fetch() {
  local url=$1 out=$2 headers=${3:-} body=${4:-}
  local -a options=()
  CODE=000
  : >"$out"
  if have curl; then
    options=(--disable --silent --show-error --connect-timeout "$CONNECT_SECONDS" --max-time "$FETCH_SECONDS"
      --max-filesize "$MAX_BYTES" --output "$out" --write-out '%{http_code}')
    case $url in
      https://*) options+=(--proto '=https' --proto-redir '=https' --tlsv1.2) ;;
      *) options+=(--proto '=http,https') ;;
    esac
    if [ -n "$CA" ]; then options+=(--cacert "$CA"); fi
    if [ -n "$body" ]; then options+=(--data-binary "@$body" --header 'Content-Type: application/json'); fi
    if [ -n "$headers" ]; then options+=(--config "$headers.curl"); fi
    if [ -z "$headers$body" ]; then options+=(--location --max-redirs 5 --retry 2); fi
    # not every version minds --max-filesize where the server does not say how much it is going to be
    CODE=$(ulimit -f $((MAX_BYTES / 1024)) && curl "${options[@]}" "$url" </dev/null) || return 1
  elif have wget; then
    options=(--no-config --quiet --server-response --tries=2 --timeout="$CONNECT_SECONDS" --output-document="$out")
    if [ -n "$headers" ]; then options[0]="--config=$headers.wget"; fi
    if [ -n "$CA" ]; then options+=(--ca-certificate="$CA"); fi
    if [ -n "$body" ]; then options+=(--post-file="$body" --header='Content-Type: application/json'); fi
    if [ -n "$headers$body" ]; then
      options+=(--max-redirect=0 --content-on-error)
    else
      options+=(--max-redirect=5)
    fi
    case $url in https://*) options+=(--secure-protocol=TLSv1_2) ;; esac
    local failed=
    (ulimit -f $((MAX_BYTES / 1024)) && exec timeout "$FETCH_SECONDS" wget "${options[@]}" "$url") \
      </dev/null 2>"$WORK/wget" || failed=1
    if [[ $url == https://* ]] && grep -qi '^ *location: *http://' "$WORK/wget"; then
      printf 'identree: %s sends us to an address that is not encrypted\n' "$url" >&2
      return 1
    fi
    # the status of the last of several answers
    CODE=$(sed -n 's/^ *HTTP\/[0-9.]* \([0-9][0-9][0-9]\).*/\1/p' "$WORK/wget" | tail -n 1)
    if [ -z "$CODE" ]; then
      CODE=000
      if [ -n "$failed" ]; then
        tail -n 2 "$WORK/wget" >&2
        return 1
      fi
    elif [ "$CODE" = 200 ] && [ -n "$failed" ]; then
      printf 'identree: %s: the answer is cut off, or too large\n' "$url" >&2
      return 1
    fi
  else
    if [ -n "$headers" ]; then headers=$headers.plain; fi
    CODE=$(python fetch "$url" "$out" "$headers" "$body" "$CA" "$MAX_BYTES" "$CONNECT_SECONDS") || return 1
  fi
}

# get URL OUT WHAT: or the end.
get() {
  fetch "$1" "$2" || die "$3 cannot be fetched: $1 does not answer. Nothing was changed"
  case $CODE in
    200) ;;
    404) die "$3 is not on this server ($1). Is it an identree server, and is the agent installed beside it?" ;;
    *) die "$3 cannot be fetched: $1 answers with HTTP $CODE. Nothing was changed" ;;
  esac
}

# headers SECRET-FILE HOSTNAME: what fetch takes as HEADERS.
headers() {
  local style
  for style in curl wget plain; do
    python quote "$1" X-Shared-Secret $style >"$WORK/headers.$style" || exit 1
    case $style in
      curl) printf 'header = "X-Hostname: %s"\n' "$2" ;;
      wget) printf 'header = X-Hostname: %s\n' "$2" ;;
      plain) printf 'X-Hostname: %s\n' "$2" ;;
    esac >>"$WORK/headers.$style"
  done
}

# -- names -------------------------------------------------------------------------------------------------------------
# A name as the server keeps it; nothing if it is none.
host_name() {
  local name
  name=$(printf '%s' "$1" | tr '[:upper:]' '[:lower:]')
  name=${name%.}
  case $name in
    '' | *[!a-z0-9._-]*) return ;;
  esac
  if [ ${#name} -le 253 ]; then printf '%s' "$name"; fi
}

full_name() {
  local name=
  if have hostname; then
    name=$(timeout 10 hostname -f </dev/null 2>/dev/null) || name=$(hostname </dev/null 2>/dev/null) || name=
  fi
  case $name in
    # /etc/hosts names it so, where this host's own name shares a line with it
    '' | localhost | localhost.*) name=$(uname -n) ;;
  esac
  host_name "$name"
}

# -- steps -------------------------------------------------------------------------------------------------------------
# The secret and the address that the agent will have, and where to download from.
ask_server() {
  local code
  headers "$WORK/secret" "$NAME"
  fetch "$URL/install-config.json" "$WORK/config" "$WORK/headers" ||
    die "$URL does not answer. Is the address right, and is the way to it open? Nothing was changed"
  code=$CODE
  case $code in
    200)
      SERVER=$(python json "$WORK/config" server_url)
      SERVER=${SERVER%/}
      if [ -z "$SERVER" ]; then die "$URL/install-config.json names no server_url; is it an identree server?"; fi
      check_url "$SERVER"
      SOURCE=$(python json "$WORK/config" install_url)
      SOURCE=${SOURCE%/}
      SOURCE=${SOURCE:-$SERVER}
      check_url "$SOURCE"
      ;;
    401 | 403) die "$URL does not accept this secret. Is it the server's, or this host's ($NAME) own? Nothing was changed" ;;
    429) die "$URL holds us off after too many wrong secrets; try again in a minute. Nothing was changed" ;;
    404) die "$URL is no identree server: it has no /install-config.json. Nothing was changed" ;;
    3*) die "$URL sends us elsewhere, where the secret must not go; give the address that it sends to" ;;
    *) die "$URL/install-config.json answers with HTTP $code. Nothing was changed" ;;
  esac
}

check_url() {
  python url "$1" || exit 1
  case $1 in
    http://*)
      if [ "$INSECURE" != true ]; then
        die "$1 is not encrypted: the network could approve. Use https://; only for tests is there" \
          "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW=true"
      fi
      ;;
  esac
}

fetch_agent() {
  local digest version
  get "$SOURCE/download/version" "$WORK/version" "the version"
  version=$(tr -cd 'A-Za-z0-9.+~_-' <"$WORK/version" | cut -c1-64)
  get "$SOURCE/download/identree.pyz.sha256" "$WORK/sum" "the agent's checksum"
  if [ -n "${IDENTREE_VERIFY_KEY:-}" ]; then
    get "$SOURCE/download/identree.pyz.sha256.sig" "$WORK/sum.sig" "the signature of the agent's checksum"
    python verify "$IDENTREE_VERIFY_KEY" "$WORK/sum" "$WORK/sum.sig" || exit 1
  fi
  digest=$(python digest "$WORK/sum" identree.pyz) || exit 1
  if python same "$AGENT" "$SHEBANG" "$digest"; then
    say "the agent is up to date ($version)"
    cp -- "$AGENT" "$WORK/fetched"
  else
    get "$SOURCE/download/identree.pyz" "$WORK/fetched" "the agent"
    python check "$WORK/fetched" "$digest" || exit 1
    say "agent $version fetched; its checksum is right"
  fi
  # after the check: what comes now changes the file
  python shebang "$WORK/fetched" "$SHEBANG_HERE" "$WORK/agent" || exit 1
  # /run may forbid to execute, so its interpreter is called
  if ! env -i PATH="$PATH" "$PYTHON" -ISB "$WORK/agent" --version </dev/null >"$WORK/said" 2>&1; then
    die "the agent does not start with $PYTHON: $(head -c 300 "$WORK/said" | tr -d '\000-\011\013-\037'). Nothing was changed"
  fi
}

# The token is good for one try, so this comes when everything else is known to work.
enrol() {
  local name answer
  for name in "$NAME" "$(full_name)"; do
    if [ -z "$name" ]; then continue; fi
    python member "$name" "$WORK/token" "$WORK/body" || exit 1
    fetch "$URL/api/enrol" "$WORK/enrolled" '' "$WORK/body" || die "$URL/api/enrol does not answer. Nothing was changed"
    # of another name: the token is still good
    if [ "$CODE" != 403 ]; then break; fi
  done
  if [ "$CODE" != 201 ] && [ "$CODE" != 200 ]; then
    answer=$(python json "$WORK/enrolled" error) || answer=
    die "this host ($NAME) was not enrolled: ${answer:-$URL/api/enrol answers with HTTP $CODE}"
  fi
  python json_file "$WORK/enrolled" secret "$WORK/secret" || exit 1
  ENROLLED=1
  NAME=$name
  answer=$(python json "$WORK/enrolled" hostname) || answer=
  answer=$(host_name "$answer")
  NAME=${answer:-$NAME}
  SERVER=$(python json "$WORK/enrolled" server_url) || SERVER=
  SERVER=${SERVER%/}
  # the token is gone, so this is no time to stop
  if ! (check_url "$SERVER"); then
    warn "the server calls itself ${SERVER:-nothing}, which cannot be; $URL is used"
    SERVER=$URL
  fi
  say "enrolled as $NAME"
}

write_conf() {
  local -a changes=()
  local kernel
  if [ ! -d "$CONF_DIRECTORY" ]; then
    mkdir -m 0750 -- "$CONF_DIRECTORY"
    MADE_DIRECTORY=1
  fi
  if [ -e "$CONF" ]; then
    cp -p -- "$CONF" "$WORK/conf"
    CONF_BEFORE=$WORK/conf
  else
    CONF_BEFORE=none
  fi
  printf '%s' "$SERVER" >"$WORK/server"
  changes=("IDENTREE_SERVER_URL=$WORK/server")
  if [ -n "$NEW_SECRET" ]; then changes+=("IDENTREE_SHARED_SECRET=$WORK/secret"); fi
  kernel=$(host_name "$(uname -n)")
  if [ -n "$NAME" ] && { [ "$NAME" != "$kernel" ] || [ -n "${IDENTREE_HOSTNAME:-}" ]; }; then
    printf '%s' "$NAME" >"$WORK/name"
    changes+=("IDENTREE_HOSTNAME=$WORK/name")
  fi
  if [ -n "${IDENTREE_CA_CERT:-}" ]; then
    printf '%s' "$IDENTREE_CA_CERT" >"$WORK/ca"
    changes+=("IDENTREE_CA_CERT=$WORK/ca")
  fi
  case $SERVER in
    http://*)
      printf 'true' >"$WORK/insecure"
      changes+=("IDENTREE_INSECURE_ALLOW_HTTP_ESCROW=$WORK/insecure")
      ;;
  esac
  python merge "$CONF" "${changes[@]}" || exit 1
  KEEP_CONF=$ENROLLED
}

install_agent() {
  if python equal "$WORK/agent" "$AGENT"; then
    AGENT_BEFORE=same
    return
  fi
  if [ ! -d "${AGENT%/*}" ]; then (umask 022 && mkdir -p -- "${AGENT%/*}"); fi
  if [ -e "$AGENT" ]; then
    if [ -e "$PREVIOUS" ]; then
      cp -p -- "$PREVIOUS" "$WORK/previous"
      PREVIOUS_BEFORE=$WORK/previous
    fi
    # a copy and not a rename: at every moment there is an agent for the sudo that starts just now
    cp -p -- "$AGENT" "$AGENT.new-previous"
    mv -f -- "$AGENT.new-previous" "$PREVIOUS"
    AGENT_BEFORE=saved
  else
    AGENT_BEFORE=none
  fi
  python install "$WORK/agent" "$AGENT" || exit 1
  if have restorecon; then
    restorecon -- "$AGENT" </dev/null >/dev/null 2>&1 || true
  fi
  agent --version >"$WORK/said" 2>&1 ||
    die "the installed agent does not start: $(head -c 300 "$WORK/said" | tr -d '\000-\011\013-\037')"
}

# What the agent starts must neither eat this script from standard input nor hold the lock of it.
agent() { env -i PATH="$PATH" LC_ALL=C "$AGENT" "$@" </dev/null 9<&-; }

# Before setup, which asks the server: an ended certificate would have it fail, and its renewal needs only the secret.
renew_certificate() {
  local force=--force
  # one from elsewhere is renewed there
  if [ "$(python get "$CONF" IDENTREE_CLIENT_CERT)" != "$CONF_DIRECTORY/client.crt" ]; then return; fi
  # setup fetches another one, so only what would be in its way
  if [ "${SETUP_SSSD:-}" = 1 ]; then force=; fi
  agent renew-cert ${force:+"$force"} ||
    warn "this host's certificate was not renewed, for the reason above; then run identree renew-cert --force"
}

# Timers, audit rules, sssd, and PAM as the last: the agent does it, tries itself before, and takes back what fails.
configure() {
  local -a options=(--timers)
  if have augenrules && auditctl -l </dev/null >/dev/null 2>&1; then
    options+=(--auditd)
  elif have augenrules; then
    warn "the kernel's audit cannot be asked here, so nothing is recorded; on the host itself run identree setup --auditd"
  fi
  if [ "${SETUP_SSSD:-}" = 1 ]; then options+=(--sssd); fi
  if [ -n "${IDENTREE_PAM_MODE:-}" ]; then options+=("--pam-mode=$IDENTREE_PAM_MODE"); fi
  agent setup "${options[@]}" ||
    die "identree setup failed; its last line says why"
}

break_glass() {
  local file
  case $(python get "$CONF" IDENTREE_BREAKGLASS_ENABLED) in
    '' | 1 | t | T | TRUE | true | True) ;;
    *) return ;;
  esac
  file=$(python get "$CONF" IDENTREE_BREAKGLASS_FILE)
  file=${file:-/etc/identree-breakglass}
  if [ -e "$file" ]; then return; fi
  # it prints no password that no vault has, unless it is told to
  agent rotate-breakglass ||
    warn "there is no break-glass password yet; run identree rotate-breakglass, and see to it that the server keeps it"
}

main() {
  local secret token
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  # of other languages more than 26 letters lie between a and z
  LC_ALL=C
  export PATH LC_ALL
  umask 077
  # out of the environment, where every child would have them
  secret=${IDENTREE_SHARED_SECRET:-${SHARED_SECRET:-}}
  token=${IDENTREE_ENROL_TOKEN:-}
  unset IDENTREE_SHARED_SECRET SHARED_SECRET IDENTREE_ENROL_TOKEN
  unset LD_PRELOAD LD_LIBRARY_PATH BASH_ENV ENV CDPATH

  URL=${1:-}
  URL=${URL%/}
  if [ -z "$URL" ]; then
    die "usage: bash install.sh https://identree.example.com"
  fi
  # whoever runs this from afar reads the name here
  FULL_NAME=$(full_name)
  printf 'IDENTREE_HOSTNAME=%s\n' "${FULL_NAME:-$(uname -n)}"
  if [ "$(id -u)" -ne 0 ]; then
    die "this needs root; run: sudo bash install.sh $URL"
  fi
  if [ "$(uname -s)" != Linux ]; then
    die "this is not Linux"
  fi
  find_python
  CA=${IDENTREE_CA_CERT:-}
  if [ -z "$CA" ]; then CA=$(python get "$CONF" IDENTREE_CA_CERT); fi
  if [ -n "$CA" ] && [ ! -r "$CA" ]; then die "the CA file $CA cannot be read"; fi
  case $CA in '' | /*) ;; *) die "IDENTREE_CA_CERT must be an absolute path" ;; esac
  if [ -n "${IDENTREE_VERIFY_KEY:-}" ] && [ ! -r "$IDENTREE_VERIFY_KEY" ]; then
    die "the key file $IDENTREE_VERIFY_KEY cannot be read"
  fi
  INSECURE=${IDENTREE_INSECURE_ALLOW_HTTP_ESCROW:-}
  if [ -z "$INSECURE" ]; then INSECURE=$(python get "$CONF" IDENTREE_INSECURE_ALLOW_HTTP_ESCROW); fi
  case $INSECURE in 1 | t | T | TRUE | true | True) INSECURE=true ;; *) INSECURE= ;; esac
  check_url "$URL"
  NAME=${IDENTREE_HOSTNAME:-}
  if [ -n "$NAME" ]; then
    NAME=$(host_name "$NAME")
    if [ -z "$NAME" ]; then die "IDENTREE_HOSTNAME takes letters, digits, '.', '_' and '-'"; fi
  else
    NAME=$(host_name "$(python get "$CONF" IDENTREE_HOSTNAME)")
    NAME=${NAME:-$(host_name "$(uname -n)")}
  fi

  trap leave EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  # two at once would take each other's steps back
  if have flock && [ -d /run ] && [ -w /run ]; then
    exec 9>>"$LOCK"
    # and not one that the other has just removed
    if ! flock -n 9 || ! [ "$LOCK" -ef /dev/fd/9 ]; then
      die "identree is being installed by somebody else just now"
    fi
    LOCKED=1
    # of one that was killed
    rm -rf -- /run/identree-install.*
    rm -f -- "$AGENT".new-*
  fi
  # not on a disk, where that is possible: secrets pass through it
  if [ -d /run ] && [ -w /run ]; then
    WORK=$(mktemp -d /run/identree-install.XXXXXXXX)
  else
    WORK=$(mktemp -d)
  fi

  if pam_runs_agent; then PAM_BEFORE=1; fi
  SERVER='' SOURCE=$URL NEW_SECRET=''
  if [ -n "$token" ]; then
    printf '%s' "$token" >"$WORK/token"
  elif [ -n "$secret" ]; then
    printf '%s' "$secret" >"$WORK/secret"
    NEW_SECRET=1
  else
    python get "$CONF" IDENTREE_SHARED_SECRET >"$WORK/secret"
    if [ ! -s "$WORK/secret" ] && [ -z "$(python get "$CONF" IDENTREE_CLIENT_CERT)" ]; then
      if [ ! -t 0 ]; then
        die "this host has no secret yet; give IDENTREE_ENROL_TOKEN or IDENTREE_SHARED_SECRET in the environment"
      fi
      printf 'The secret of the server or of this host (not shown): ' >&2
      IFS= read -rs secret
      printf '\n' >&2
      if [ -z "$secret" ]; then die "no secret was given"; fi
      printf '%s' "$secret" >"$WORK/secret"
      NEW_SECRET=1
    fi
  fi
  secret='' token=''

  if [ -s "$WORK/secret" ]; then ask_server; fi
  fetch_agent
  if [ -f "$WORK/token" ]; then
    enrol
    NEW_SECRET=1
  fi
  SERVER=${SERVER:-$URL}

  # from here on the host is changed
  write_conf
  install_agent
  renew_certificate
  configure
  FINISHED=1
  break_glass
  agent heartbeat >/dev/null 2>&1 || true
  say "installed: $(agent --version | head -n 1) in $AGENT, for $SERVER"
  if [ -e "$PREVIOUS" ]; then
    say "the agent before is kept; to go back to it: mv $PREVIOUS $AGENT"
  fi
  say "keep a root shell open until sudo has worked once in another one"
}

# The last line, so that half a script does nothing.
main "$@"
