#!/usr/bin/env bash
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
#
# Hosts on one machine: network namespaces that a switch joins, each with a link of a given rate. `usage` says how.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: bench/network_namespaces.sh with HOSTS RATE COMMAND...   make hosts, run COMMAND in each at once, remove them
       bench/network_namespaces.sh up HOSTS RATE                make hosts 0..HOSTS-1
       bench/network_namespaces.sh run HOST COMMAND...          run COMMAND in one of them
       bench/network_namespaces.sh cut|restore HOST             take its link down, or up again
       bench/network_namespaces.sh down                         end what runs in them and remove them

RATE holds for each link and direction: 1gbit, 10gbit, 100mbit, ...; or none.
COMMAND finds NODE_RANK (0..), NNODES, NODE_ADDRESS (its own: 10.77.0.NODE_RANK+1) and MASTER_ADDR (host 0's) in its environment.
`with` fails when one of the commands does, and removes the hosts however it ends. NAMESPACE_PREFIX (default nibble)
keeps several sets apart. Needs root and iproute2.
EOF
}

fail() { echo "network_namespaces.sh: $*" >&2; exit 1; }

prefix=${NAMESPACE_PREFIX:-nibble}
[[ $prefix =~ ^[a-z0-9]{1,10}$ ]] || fail "NAMESPACE_PREFIX '$prefix' is not 1 to 10 of a-z and 0-9"
switch=$prefix-switch

[ $# -gt 0 ] || { usage >&2; exit 2; }
case $1 in help | -h | --help) usage; exit 0 ;; esac
command -v ip >/dev/null && command -v tc >/dev/null || fail "needs ip and tc (Debian: apt-get install iproute2)"
[ "$(id -u)" = 0 ] || fail "needs root to make network namespaces"

address_of() { echo "10.77.0.$(($1 + 1))"; }
exists() { [ -e "/run/netns/$1" ]; }
check_host() {
  [[ ${1:-} =~ ^[0-9]+$ ]] && exists "$prefix-$1" || fail "there is no host '${1:-}': see 'up'"
}

# One end of a link. Both ends are limited on their way out, so that each direction is limited once before and once
# behind the switch, as cables are. The bucket holds what passes in 0.1 ms (at least 32 KiB), so that what is measured is
# the rate and not the bucket: with less, a timer that is late in a virtual machine costs rate. Veth links hand over
# segments of up to 64 KiB at a time, which must fit: below some 5 Gbit/s they are cut to 16 KiB. Above they stay whole,
# because two cores cannot send 10 Gbit/s in small ones. The queue is deep enough that TCP is slowed by the rate and not
# by losses.
limit_end() {  # limit_end NAMESPACE DEVICE RATE
  [ "$3" != none ] || return 0
  [[ $3 =~ ^([1-9][0-9]{0,4})(gbit|mbit)$ ]] || fail "the rate '$3' is none like 1gbit, 100mbit, none"
  local mbit=${BASH_REMATCH[1]} burst_kb=32
  [ "${BASH_REMATCH[2]}" = mbit ] || mbit=$((mbit * 1000))
  [ $((mbit / 80)) -le "$burst_kb" ] || burst_kb=$((mbit / 80))
  [ "$burst_kb" -ge 64 ] || ip -n "$1" link set "$2" gso_max_size 16384
  tc -n "$1" qdisc add dev "$2" root tbf rate "${mbit}mbit" burst "${burst_kb}kb" limit 4mb
}

up() {
  local hosts=${1:-} rate=${2:-} host
  [[ $hosts =~ ^[0-9]+$ ]] && [ "$hosts" -ge 1 ] && [ "$hosts" -le 64 ] || fail "'$hosts' hosts, the limit is 1 to 64"
  [ -n "$rate" ] || fail "no rate given"
  ! exists "$switch" || fail "the hosts of '$prefix' exist already: see 'down'"
  trap down EXIT  # what is half made; and for `with` all of it, however it ends
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  ip netns add "$switch"
  ip -n "$switch" link add bridge type bridge
  ip -n "$switch" link set bridge up
  for ((host = 0; host < hosts; ++host)); do
    ip netns add "$prefix-$host"
    ip -n "$switch" link add "port$host" type veth peer name eth0 netns "$prefix-$host"
    limit_end "$switch" "port$host" "$rate"
    limit_end "$prefix-$host" eth0 "$rate"
    ip -n "$switch" link set "port$host" master bridge up
    ip -n "$prefix-$host" addr add "$(address_of "$host")/24" dev eth0
    ip -n "$prefix-$host" link set lo up
    ip -n "$prefix-$host" link set eth0 up
  done
}

down() {
  local namespace pids
  for namespace in /run/netns/"$prefix"-*; do
    [ -e "$namespace" ] || continue
    namespace=${namespace##*/}
    [[ $namespace =~ ^$prefix-([0-9]+|switch)$ ]] || continue
    pids=$(ip netns pids "$namespace" 2>/dev/null || true)
    # shellcheck disable=SC2086
    [ -z "$pids" ] || kill -9 $pids 2>/dev/null || true
    ip netns del "$namespace" || true
  done
}

run() {
  local host=$1 hosts
  shift
  [ $# -gt 0 ] || fail "no command given"
  hosts=$(find /run/netns -name "$prefix-[0-9]*" | wc -l)
  exec ip netns exec "$prefix-$host" env NODE_RANK="$host" NNODES="$hosts" NODE_ADDRESS="$(address_of "$host")" \
    MASTER_ADDR="$(address_of 0)" "$@"
}

with() {
  local hosts=${1:-} host
  up "$hosts" "${2:-}"
  shift 2
  [ $# -gt 0 ] || fail "no command given"
  for ((host = 0; host < hosts; ++host)); do (trap - EXIT; run "$host" "$@") & done
  for ((host = 0; host < hosts; ++host)); do wait -n; done  # the first that fails ends all
}

verb=$1
shift
case $verb in
  with) with "$@" ;;
  up) up "$@"; trap - EXIT ;;
  down) down ;;
  run) check_host "${1:-}"; run "$@" ;;
  cut) check_host "${1:-}"; ip -n "$switch" link set "port$1" down ;;  # as if its cable were pulled
  restore) check_host "${1:-}"; ip -n "$switch" link set "port$1" up ;;
  *) usage >&2; fail "unknown verb '$verb'" ;;
esac
