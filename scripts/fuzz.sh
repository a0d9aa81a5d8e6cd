#!/usr/bin/env bash
# Runs libFuzzer on the properties of fuzz/src/lib.rs.
#
#   scripts/fuzz.sh                     every target for a minute
#   scripts/fuzz.sh TARGET [SECONDS]    one target
#
# Needs a C++ compiler. The corpus is kept in target/fuzz-corpus. Inputs that violate a property are written to target/fuzz-found; add
# each to a test.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t targets < <(cd fuzz/fuzz_targets && ls *.rs | sed 's/\.rs$//')
seconds=${2:-60}
[ $# -eq 0 ] || targets=("$1")

# The flags of `cargo fuzz --sanitizer none`, which stable Rust accepts. No sanitizer is needed: in safe Rust a fault is a panic.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1"
# An explicit --target keeps the flags away from build scripts; a separate target folder keeps the ordinary build.
host=$(rustc -vV | sed -n 's/^host: //p')
for target in "${targets[@]}"; do
  cargo build --release -p fuzz --features libfuzzer --bin "$target" --target "$host" --target-dir target/fuzz-build
  mkdir -p "target/fuzz-corpus/$target" target/fuzz-found
  "target/fuzz-build/$host/release/$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -verbosity=1 \
    -artifact_prefix="target/fuzz-found/$target-" "target/fuzz-corpus/$target"
done
