#!/bin/sh
# Makes a base image out of Debian's packages alone, for hosts that reach no image registry:
#   deployments/image/base.sh timestep-base && make image BASE=localhost/timestep-base
# Needs root, debootstrap and buildah. SUITE, MIRROR and BUILDAH ("buildah --root …") can be set.
set -eu
name=${1:?"usage: base.sh IMAGE"}
suite=${SUITE:-bookworm} mirror=${MIRROR:-http://deb.debian.org/debian} buildah=${BUILDAH:-buildah}
[ "$(id -u)" = 0 ] || { echo "Only root can make a base image: sudo $0 $name" >&2; exit 1; }
for program in debootstrap ${buildah%% *}; do
  command -v "$program" > /dev/null || { echo "'$program' is needed. Install it: apt install $program" >&2; exit 1; }
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,tzdata "$suite" "$folder" "$mirror"
# What was only for the installation; what nobody reads in a container; what was copied from this machine.
rm -rf "$folder"/var/cache/apt/* "$folder"/var/lib/apt/lists/* "$folder"/var/log/*.log \
  "$folder"/usr/share/doc/* "$folder"/usr/share/man/* "$folder"/usr/share/locale/* \
  "$folder"/etc/resolv.conf "$folder"/etc/hostname
container=$($buildah from scratch)
$buildah add --quiet "$container" "$folder" / > /dev/null
$buildah config --cmd /bin/sh "$container"
$buildah commit --quiet --rm "$container" "$name"
