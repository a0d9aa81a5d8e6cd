#!/usr/bin/env bash
# Lets libFuzzer look for bytes that break a promise of fuzz/src/lib.rs.
#
#   scripts/fuzz.sh                     every target for a minute
#   scripts/fuzz.sh TARGET [SECONDS]    one
#
# Needs a C++ compiler. What it finds of use is kept in target/fuzz-corpus; bytes that break a promise are written to target/fuzz-found,
# and belong into a test.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t targets < <(cd fuzz/fuzz_targets && ls *.rs | sed 's/\.rs$//')
seconds=${2:-60}
[ $# -eq 0 ] || targets=("$1")

# What `cargo fuzz --sanitizer none` sets, which stable Rust takes too: the code is safe Rust, so a fault is a panic.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1"
# A target of its own keeps the flags from build scripts, and the instrumented build apart from the ordinary one.
host=$(rustc -vV | sed -n 's/^host: //p')
for target in "${targets[@]}"; do
  cargo build --release -p fuzz --features libfuzzer --bin "$target" --target "$host" --target-dir target/fuzz-build
  mkdir -p "target/fuzz-corpus/$target" target/fuzz-found
  "target/fuzz-build/$host/release/$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -verbosity=1 \
    -artifact_prefix="target/fuzz-found/$target-" "target/fuzz-corpus/$target"
done
