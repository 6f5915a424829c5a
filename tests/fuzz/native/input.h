// Takes a fuzzer's bytes apart; when they are used up, everything is zero.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

struct Input {
    const uint8_t * data;
    size_t          size;

    uint8_t byte() {
        if (size == 0) {
            return 0;
        }
        size--;
        return *data++;
    }
    // One of a table.
    template <typename T, size_t N> T pick(const T (&table)[N]) { return table[byte() % N]; }

    // A buffer of exactly n bytes, so that a step beyond it is seen.
    std::vector<uint8_t> bytes(size_t n) {
        std::vector<uint8_t> out(n);
        const size_t         have = n < size ? n : size;
        if (have != 0) {
            std::memcpy(out.data(), data, have);
        }
        // then a pattern that depends on the bytes so far
        for (size_t i = have; i < n; i++) {
            out[i] = static_cast<uint8_t>(have != 0 ? out[i % have] + 37 * i : 37 * i);
        }
        data += have;
        size -= have;
        return out;
    }
};
