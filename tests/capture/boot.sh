#!/usr/bin/env bash
# Boots Debian's kernel in QEMU, this file system as its root, loads its virtual camera `vivid`, and runs the tests
# beside this file there, with what pytest shall be told as arguments. Needs apt and the environment of `make test`; no KVM, no root device, nothing is changed.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=$PWD/.venv/bin
cache=$PWD/.cache/capture
mkdir -p "$cache"

for program in qemu-system-x86_64 kmod busybox udevadm; do
    command -v "$program" >/dev/null || missing=yes
done
if [ -n "${missing:-}" ]; then
    apt-get update -qq && apt-get install -y -qq qemu-system-x86 kmod busybox-static udev >/dev/null
fi
"$bin/python" -m pip install --quiet virtme-ng==1.42

# Unpacked, not installed: this machine keeps its own kernel.
if [ ! -d "$cache/boot" ]; then
    package=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
    (cd "$cache" && apt-get download -qq "$package" && dpkg -x linux-image-*.deb . && rm linux-image-*.deb)
fi
version=$(ls "$cache/lib/modules")
[ -e "$cache/lib/modules/$version/modules.dep.bin" ] || /sbin/depmod -b "$cache" "$version"

cat >"$cache/run.sh" <<SCRIPT
modprobe -d '$cache' vivid n_devs=1 num_inputs=1 input_types=0 num_outputs=0
cd '$PWD'
PYTHONDONTWRITEBYTECODE=1 '$bin/python' -m pytest -p no:cacheprovider tests/capture $*
echo "status \$?"
SCRIPT
# The guest's exit status is not handed out, its output is.
PATH="$bin:$PATH" vng --run "$cache/boot/vmlinuz-$version" --disable-kvm --cpus 2 --memory 4G --user root -- \
    bash "$cache/run.sh" 2>&1 | tee "$cache/log"
grep -q '^status 0' "$cache/log"
