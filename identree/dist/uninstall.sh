#!/bin/bash
# Take identree off this host. Run it as root: bash uninstall.sh
#
# Where the agent works, it does it (identree setup --remove): it knows what was there before. Where it does not, this
# script does what can be done without it. PAM comes first and the agent last: a rule without its helper locks everybody
# out of sudo.

set -euo pipefail

# The server writes other values here when it is asked to.
UNCONFIGURE_PAM=true
REMOVE_FILES=true

AGENT=/usr/local/bin/identree
PAM_FILES=(/etc/pam.d/sudo /etc/pam.d/sudo-i)
PAM_DIRECTORY=/etc/pam.d
CONF=/etc/identree/client.conf
CONF_DIRECTORY=/etc/identree
HASH_FILE=/etc/identree-breakglass
STATE_DIRECTORY=/var/lib/identree
RULES_FILE=/etc/audit/rules.d/identree.rules
UNIT_DIRECTORY=/etc/systemd/system
CRON_FILE=/etc/cron.d/identree-rotate
# An agent that does not end must not keep this from going on.
AGENT_SECONDS=300

TEMPORARY=
PROBLEMS=0

say() { printf 'identree: %s\n' "$*"; }
warn() { printf 'identree: warning: %s\n' "$*" >&2; }
die() {
  printf 'identree: %s\n' "$*" >&2
  exit 1
}
problem() {
  warn "$@"
  PROBLEMS=$((PROBLEMS + 1))
}

clean_up() {
  if [ -n "$TEMPORARY" ]; then rm -f -- "$TEMPORARY"; fi
}

agent() { env -i PATH="$PATH" LC_ALL=C timeout "$AGENT_SECONDS" "$AGENT" "$@" </dev/null; }

agent_can_remove() {
  [ -x "$AGENT" ] && agent --version >/dev/null 2>&1 && [[ $(agent setup --help 2>/dev/null) == *--keep-files* ]]
}

# The file without the rules that name identree, those that go on in the next line included.
without_identree() {
  awk '
    { rule = rule $0 "\n" }
    /\\$/ && $0 !~ /^[ \t]*#/ { next }
    { if (rule !~ /identree/) printf "%s", rule; rule = "" }
    END { if (rule != "" && rule !~ /identree/) printf "%s", rule }
  ' "$1"
}

# Whether somebody is still asked something: sudo without any auth rule refuses everybody, or worse.
has_auth() { grep -Eq '^[[:space:]]*(-?auth[[:space:]]|@include[[:space:]]+[^#]*auth)' "$1"; }

# replace FILE NEW: in one step, with owner, mode and label of what was there.
replace() {
  TEMPORARY=$1.identree-new
  cp -p -- "$1" "$TEMPORARY"
  cat -- "$2" >"$TEMPORARY"
  sync -- "$TEMPORARY" 2>/dev/null || sync
  mv -f -- "$TEMPORARY" "$1"
  TEMPORARY=
}

# undo_pam FILE: as it was before identree; where others changed it since, without our rules.
undo_pam() {
  local file=$1 saved stripped
  if [ ! -f "$file" ] || ! grep -q identree -- "$file"; then return; fi
  if [ -L "$file" ]; then file=$(readlink -f -- "$file"); fi
  stripped=$(mktemp)
  without_identree "$file" >"$stripped"
  # the original, if it differs from this by nothing but our rules, and by what they were put in place of
  for saved in "$file.identree.bak" "$file.bak"; do
    if [ -f "$saved" ] && ! grep -q identree -- "$saved" && has_auth "$saved"; then
      if same_rules "$stripped" "$saved" || ! has_auth "$stripped"; then
        replace "$file" "$saved"
        rm -f -- "$stripped"
        if [ "$saved" = "$file.identree.bak" ]; then rm -f -- "$saved"; fi
        say "$file: as before"
        return
      fi
    fi
  done
  if ! has_auth "$stripped"; then
    # the whole stack was ours, and nobody kept the one before
    standard_auth "$file" >"$stripped.new"
    cat -- "$stripped" >>"$stripped.new"
    mv -f -- "$stripped.new" "$stripped"
    if ! has_auth "$stripped"; then
      rm -f -- "$stripped"
      problem "$file has no other auth rule than identree's, and how this system asks for passwords is not known;" \
        "it stays as it is. Put the system's own file there, then run this again"
      return
    fi
    warn "$file: the password stack of the system was put in place of identree's; look at it"
  fi
  replace "$file" "$stripped"
  rm -f -- "$stripped"
  say "$file: identree's rules were taken out"
}

# Rules alone: blank lines and comments do not count.
same_rules() {
  [ "$(grep -Ev '^[[:space:]]*(#|$)' -- "$1")" = "$(grep -Ev '^[[:space:]]*(#|$)' -- "$2")" ]
}

standard_auth() {
  if [ -f "$PAM_DIRECTORY/common-auth" ]; then
    printf '@include common-auth\n'
  elif [ -f "$PAM_DIRECTORY/system-auth" ]; then
    printf 'auth       include      system-auth\n'
  fi
}

# Anything that PAM would still run.
still_used() {
  local file
  for file in "$PAM_DIRECTORY"/*; do
    case $file in *.bak | *.identree-new | *.dpkg-* | *.rpm*) continue ;; esac
    if [ -f "$file" ] && grep -Eq "^[[:space:]]*[^#[:space:]].*$AGENT" -- "$file"; then
      printf '%s\n' "$file"
    fi
  done
}

undo_timers() {
  local name found=
  if [ -d /run/systemd/system ]; then
    for name in rotate heartbeat renew; do
      if [ -e "$UNIT_DIRECTORY/identree-$name.timer" ]; then
        systemctl disable --now "identree-$name.timer" </dev/null >/dev/null 2>&1 || true
      fi
    done
  fi
  for name in rotate heartbeat renew; do
    if [ -e "$UNIT_DIRECTORY/identree-$name.timer" ] || [ -e "$UNIT_DIRECTORY/identree-$name.service" ]; then
      rm -f -- "$UNIT_DIRECTORY/identree-$name.timer" "$UNIT_DIRECTORY/identree-$name.service"
      rm -f -- "$UNIT_DIRECTORY/timers.target.wants/identree-$name.timer"
      found=1
    fi
    rm -f -- "/var/lib/systemd/timers/stamp-identree-$name.timer"
  done
  if [ -n "$found" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload </dev/null || problem "systemd did not read its units again; run systemctl daemon-reload"
  fi
  if [ -e "$CRON_FILE" ]; then
    rm -f -- "$CRON_FILE"
    found=1
  fi
  if [ -n "$found" ]; then say "the timers were removed"; fi
}

undo_audit() {
  local key
  if [ ! -e "$RULES_FILE" ]; then return; fi
  rm -f -- "$RULES_FILE"
  if command -v auditctl >/dev/null 2>&1; then
    for key in breakglass breakglass-report config pam-config sssd-config mtls-key; do
      auditctl -D -k "identree-$key" </dev/null >/dev/null 2>&1 || true
    done
  fi
  if command -v augenrules >/dev/null 2>&1; then
    augenrules --load </dev/null >/dev/null 2>&1 || true
  fi
  say "the audit rules were removed"
}

# What the configuration says, as the agent reads it: the last one counts.
configured() {
  if [ -f "$CONF" ]; then
    sed -n "s/^[[:space:]]*\\(export[[:space:]][[:space:]]*\\)\\{0,1\\}$1[[:space:]]*=[[:space:]]*//p" "$CONF" |
      tail -n 1 | sed "s/[[:space:]]*\$//; s/^\"\\(.*\\)\"\$/\\1/; s/^'\\(.*\\)'\$/\\1/"
  fi
}

remove_files() {
  local hash used
  used=$(still_used)
  if [ -n "$used" ]; then
    problem "nothing was removed: these still run $AGENT, and without it nobody could use sudo:" "${used//$'\n'/, }"
    return
  fi
  hash=$(configured IDENTREE_BREAKGLASS_FILE)
  case $hash in /*identree*) ;; *) hash=$HASH_FILE ;; esac
  rm -f -- "$HASH_FILE" "$HASH_FILE.lock" "$HASH_FILE.pending" "$HASH_FILE.signal"
  rm -f -- "$hash" "$hash.lock" "$hash.pending" "$hash.signal"
  rm -f -- /run/identree-breakglass-failures /run/identree-breakglass-used /run/identree-breakglass-attempt \
    /run/identree-breakglass-warned
  rm -rf -- "$CONF_DIRECTORY" /run/identree
  rm -f -- "$AGENT-linux-amd64" "$AGENT-linux-arm64" "$AGENT.previous" "$AGENT"
  kept_backups
  say "the agent and its files were removed"
}

# Without the agent nobody knows what else it had changed; the originals say so.
kept_backups() {
  local found
  found=$(find /etc -xdev -name '*.identree.bak' -type f 2>/dev/null | sort)
  if [ -n "$found" ]; then
    warn "these are originals of files that identree has changed and that are not put back; compare them and put back" \
      "what you want: ${found//$'\n'/, }"
  else
    rm -rf -- "$STATE_DIRECTORY"
  fi
}

main() {
  local used file
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  # bytes are no letters of any language: what others wrote into these files may be in any
  LC_ALL=C
  export PATH LC_ALL
  umask 077
  unset LD_PRELOAD LD_LIBRARY_PATH BASH_ENV ENV CDPATH
  if [ "$(id -u)" -ne 0 ]; then
    die "this needs root; run: sudo bash uninstall.sh"
  fi
  if [ "$UNCONFIGURE_PAM" != true ] && [ "$REMOVE_FILES" = true ]; then
    used=$(still_used)
    if [ -n "$used" ]; then
      die "the files cannot be removed while PAM runs the agent; nobody could use sudo then. Take it out of PAM as well." \
        "It is in: ${used//$'\n'/, }"
    fi
  fi
  trap clean_up EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM

  if [ "$UNCONFIGURE_PAM" = true ] && agent_can_remove; then
    if [ "$REMOVE_FILES" = true ]; then
      if agent setup --remove; then
        say "identree is removed from this host"
        return
      fi
    elif agent setup --remove --keep-files; then
      say "sudo no longer asks identree; the agent and its files stay"
      return
    fi
    warn "the agent could not undo everything; this script goes on without it"
  fi

  if [ "$UNCONFIGURE_PAM" = true ]; then
    for file in "${PAM_FILES[@]}"; do undo_pam "$file"; done
  fi
  undo_timers
  undo_audit
  if [ "$REMOVE_FILES" = true ]; then remove_files; fi
  if [ "$PROBLEMS" -gt 0 ]; then
    die "not everything could be undone; see above"
  fi
  say "done"
}

# The last line, so that half a script does nothing.
main "$@"
