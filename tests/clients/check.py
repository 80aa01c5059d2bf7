"""Checks blake3_keyed.py against tests/vectors/wire.json: usage: check.py WIRE_JSON"""
import json
import sys
from blake3_keyed import keyed_hash

file = json.load(open(sys.argv[1], encoding="utf-8"))
key = bytes.fromhex(file["host_key"].split(":")[3])
for case in file["tags"]:
    body = bytes(i % 251 for i in range(case["len"]))
    assert keyed_hash(key, body)[:16].hex() == case["tag"], case
for vector in file["vectors"]:
    datagram = bytes.fromhex(vector["datagram"])
    assert keyed_hash(key, datagram[:-16])[:16] == datagram[-16:], vector["kind"]
print(len(file["tags"]) + len(file["vectors"]), "known answers")
