#!/usr/bin/env bash
# Builds `egret` for 64-bit Arm (Jetson, Raspberry Pi) with Debian 12's own packages, without the demo and in the profile `dist`, and
# checks it under qemu:
#
#   scripts/cross.sh            build, then check
#   scripts/cross.sh --build    build only
#
# The check: the binary needs no glibc newer than 2.35 (JetPack 6), and on the demo's bundle `egret ask` gives the same answer as this
# machine's own build, with probabilities within 1e-3. Where Debian's packages are not available it prints `cross build: skipped: ...`
# and exits 0.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
glibc_max=2.35
packages=(rustc-web cargo-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross libc6:arm64 qemu-user-static binutils)

skip() { echo "cross build: skipped: $1"; exit 0; }

as_root=""
[ "$(id -u)" -eq 0 ] || as_root="sudo"
missing() { for p in "${packages[@]}"; do dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || echo "$p"; done; }
if [ -n "$(missing)" ]; then
  command -v apt-get >/dev/null || skip "no apt-get found in PATH"
  $as_root dpkg --add-architecture arm64 || skip "dpkg could not add the architecture arm64"
  $as_root apt-get update -q >/dev/null || skip "apt-get update failed"
  # shellcheck disable=SC2046
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -q -y --no-install-recommends $(missing) >/dev/null ||
    skip "these packages could not be installed: $(missing | tr '\n' ' ')"
fi

# Debian's compiler, because Debian has the matching standard library for arm64; a separate target folder, because object files of two
# compilers cannot be mixed.
RUSTC=/usr/bin/rustc \
CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc \
  /usr/bin/cargo build --profile dist --target "$target" --target-dir target/cross -p runtime --no-default-features
egret=target/cross/$target/dist/egret

glibc=$(readelf --version-info "$egret" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -uV | tail -n 1)
[ "$(printf '%s\n' "$glibc" "$glibc_max" | sort -V | tail -n 1)" = "$glibc_max" ] ||
  { echo "cross build for $target: the binary needs glibc $glibc, expected at most $glibc_max"; exit 1; }
echo "cross build for $target: $egret, $(stat -c %s "$egret") bytes, needs glibc $glibc"
[ "${1:-}" != "--build" ] || exit 0

cargo build --release -p runtime
ask=(ask --bundle demo/bundles/nano-edge --backend tract --image demo/frames/lobby/035000.jpg --candidates yes,no --json "is there a person?")
here=$(target/release/egret "${ask[@]}")
# No -L: qemu finds libc6:arm64 in its multiarch path.
there=$(qemu-aarch64-static -cpu cortex-a72 "$egret" "${ask[@]}")
/usr/bin/python3 - "$here" "$there" <<'PY'
import json, sys
here, there = (json.loads(text.splitlines()[-1]) for text in sys.argv[1:])
assert here["answer"] == there["answer"], (here["answer"], there["answer"])
worst = max(abs(a["probability"] - b["probability"]) for a, b in zip(here["candidates"], there["candidates"], strict=True))
assert worst <= 1e-3, f"probabilities differ by {worst}"
print(f"cross check under qemu: same answer {there['answer']!r}, probabilities within {worst:.1e}")
PY
