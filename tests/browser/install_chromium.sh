#!/bin/sh
# The browser tests drive Debian's Chromium. Where it cannot be installed they are skipped, and say so.
set -u
for name in chromium chromium-browser google-chrome; do command -v $name >/dev/null && exit 0; done
command -v apt-get >/dev/null || { echo "no apt-get: install chromium by hand to run the browser tests"; exit 0; }
root=""; [ "$(id -u)" = 0 ] || root="sudo -n"
$root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $root apt-get install -y -qq chromium fonts-noto-core fonts-noto-color-emoji >/dev/null \
  || echo "chromium could not be installed: the browser tests will be skipped"
