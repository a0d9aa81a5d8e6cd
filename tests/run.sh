#!/usr/bin/env bash
# Passes the tests on a fresh Debian or Ubuntu with git, a C compiler and rustup's stable toolchain.
#
#   tests/run.sh                 everything
#   tests/run.sh FILTER…         only tests whose name contains a filter
#
# Installs what the tests need through apt and pip: a broker (mosquitto), a decoder (ffmpeg), an RTSP server (GStreamer's), ONNX
# Runtime's library (from its Python wheel), OpenAI's Python SDK, Prometheus' Python parser and the MQTT client of examples/. The
# Python packages go into target/test-venv, nothing else of Python is touched.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
  mosquitto                                                # the broker that events and pools are tested against
  ffmpeg                                                   # decodes clips and RTSP
  gstreamer1.0-rtsp gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly
  gir1.2-gst-rtsp-server-1.0 gir1.2-gstreamer-1.0 python3-gi   # an RTSP server on loopback
  python3 python3-venv                                     # wheels below
)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "tests/run.sh: installing ${missing[*]}" >&2
  as_root=""
  [ "$(id -u)" -eq 0 ] || as_root="sudo"
  $as_root apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null
fi

# Debian's python3: python3-venv belongs to it, whatever else is first in PATH.
venv=target/test-venv
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import onnxruntime, openai, prometheus_client, paho.mqtt' 2>/dev/null; then
  echo "tests/run.sh: creating $venv" >&2
  mkdir -p target
  rm -rf "$venv"
  /usr/bin/python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check 'onnxruntime==1.32.0' 'openai==3.54.0' 'prometheus_client==0.26.0' 'paho-mqtt==2.2.0'
fi

ORT_DYLIB_PATH=$(find "$PWD/$venv" -name 'libonnxruntime.so.*' | head -n 1)
[ -n "$ORT_DYLIB_PATH" ] || { echo "tests/run.sh: no libonnxruntime.so in the onnxruntime wheel under $venv" >&2; exit 74; }
export ORT_DYLIB_PATH
export EGRET_TEST_PYTHON="$PWD/$venv/bin/python"

# The integration tests start the programs as a user would, so these are built first.
cargo build --release --workspace --bins
exec cargo test --release --workspace -- "$@"
