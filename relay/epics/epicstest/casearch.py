#!/usr/bin/env python3
# Copyright The Fathom Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: casearch.py LIBRARY NAME...
#
# Creates a Channel Access channel for each name with the genuine client library, which then broadcasts
# searches for them until it finds them, and says "searching". It goes on until its standard input ends.
import ctypes
import sys

ca = ctypes.CDLL(sys.argv[1])
ca.ca_create_channel.argtypes = [
    ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p)]
ECA_NORMAL = 1


def check(what, status):
    if status != ECA_NORMAL:
        sys.exit(f"{what}: status {status}")


check("ca_context_create", ca.ca_context_create(1))  # 1: with threads of its own
channels = []
for name in sys.argv[2:]:
    channel = ctypes.c_void_p()
    check(name, ca.ca_create_channel(name.encode(), None, None, 0, ctypes.byref(channel)))
    channels.append(channel)
check("ca_flush_io", ca.ca_flush_io())
print("searching", flush=True)
sys.stdin.read()
ca.ca_context_destroy()
