"""BLAKE3's keyed hash in plain Python: slow, short, and after the paper (O'Connor et al., 2020)."""
import struct

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
MIX = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
       (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
CHUNK_START, CHUNK_END, PARENT, ROOT, KEYED = 1, 2, 4, 8, 16
MASK = 0xFFFFFFFF


def rotate(x, n):
    return (x >> n | x << (32 - n)) & MASK


def compress(cv, words, counter, length, flags):
    """Eight words: the chaining value of one block."""
    v = [*cv, *IV[:4], counter & MASK, counter >> 32, length, flags]
    for _ in range(7):
        for i, (a, b, c, d) in enumerate(MIX):
            for m, r1, r2 in ((words[2 * i], 16, 12), (words[2 * i + 1], 8, 7)):
                v[a] = v[a] + v[b] + m & MASK
                v[d] = rotate(v[d] ^ v[a], r1)
                v[c] = v[c] + v[d] & MASK
                v[b] = rotate(v[b] ^ v[c], r2)
        words = [words[i] for i in ORDER]
    return [v[i] ^ v[i + 8] for i in range(8)]


def node(key, data, counter):
    """The last compression of a subtree, not yet done: the root's has one more flag."""
    if len(data) > 1024:
        chunks = (len(data) + 1023) // 1024
        left = 1 << (chunks - 1).bit_length() - 1
        halves = node(key, data[:left * 1024], counter), node(key, data[left * 1024:], counter + left)
        return key, sum((compress(*half) for half in halves), []), 0, 64, PARENT | KEYED
    cv, blocks = key, [data[i:i + 64] for i in range(0, len(data), 64)] or [b""]
    for i, block in enumerate(blocks):
        words = list(struct.unpack("<16I", block.ljust(64, b"\0")))
        flags = KEYED | (CHUNK_START if i == 0 else 0) | (CHUNK_END if i == len(blocks) - 1 else 0)
        if i == len(blocks) - 1:
            return cv, words, counter, len(block), flags
        cv = compress(cv, words, counter, 64, flags)


def keyed_hash(key, data):
    """32 bytes under a key of 32 bytes."""
    cv, words, counter, length, flags = node(struct.unpack("<8I", key), data, 0)
    return struct.pack("<8I", *compress(cv, words, counter, length, flags | ROOT))
