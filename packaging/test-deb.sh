#!/bin/bash
# Installs a .deb into a fresh Debian 12 below a folder, starts the app there, and looks for its window.
set -euo pipefail
deb=$1 root=$2
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -v security | sort -u | head -n 1)}

rm -rf "$root"
debootstrap --variant=minbase bookworm "$root" "$mirror" >/dev/null
# However packages are fetched here, they are fetched there.
cp -r /etc/apt/apt.conf.d /etc/apt/sources.list* "$root/etc/apt/" 2>/dev/null || true
cp /etc/resolv.conf "$root/etc/" || true
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
# What still runs there for a moment must not keep it.
trap 'umount -l "$root/dev" "$root/proc"' EXIT
cp "$deb" "$root/tmp/sateen.deb"
chroot "$root" sh -c 'apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends /tmp/sateen.deb' >/dev/null
chroot "$root" sateen --version
chroot "$root" sateen models list

# The window is shown outside: the root has no X server.
xvfb-run -a bash -euo pipefail -c '
  mkdir -p "$0/tmp/.X11-unix"
  mount --bind /tmp/.X11-unix "$0/tmp/.X11-unix"
  trap "umount -l \"$0/tmp/.X11-unix\"" EXIT
  cp "$XAUTHORITY" "$0/tmp/xauthority"
  env XAUTHORITY=/tmp/xauthority dbus-run-session -- chroot "$0" sateen-desktop &
  app=$!
  for _ in $(seq 100); do
    if xdotool search --onlyvisible --name sateen >/dev/null 2>&1; then found=yes; break; fi
    sleep 0.2
  done
  kill $app 2>/dev/null || true
  pkill -f "^sateen-desktop" || true
  [ "${found:-no}" = yes ] && echo "the window was shown: 1 passed, 0 failed"
' "$root"
