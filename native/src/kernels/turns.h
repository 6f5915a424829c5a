// Cosines and sines of positions (rotary position embedding, Su et al., arXiv:2104.09864). The heads
// of a token have them in common, and so do all layers of a step.
#pragma once

#include <cmath>
#include <cstdint>

namespace inferos::kernels {

constexpr int32_t kMostPairs = 128;  // of a head

// What angles follow from: those of pair i are position * scale * base^(-i / n_pairs).
struct Rotary {
    int32_t n_pairs = 0;
    float   base = 0, scale = 0, magnitude = 0;

    bool operator==(const Rotary & other) const {
        return n_pairs == other.n_pairs && base == other.base && scale == other.scale &&
               magnitude == other.magnitude;
    }
};

struct Turn {
    float cosines[kMostPairs], sines[kMostPairs];
};

// Those of the last positions that a member has met.
class Turns {
  public:
    const Turn & at(const Rotary & rotary, int32_t position) {
        if (!(rotary == rotary_)) {
            forget(rotary);
        }
        const auto slot = static_cast<uint32_t>(position) % kSlots;
        if (positions_[slot] != position) {
            positions_[slot] = position;
            compute(position, turns_[slot]);
        }
        return turns_[slot];
    }

  private:
    static constexpr uint32_t kSlots = 32;

    // A frequency is rounded to float32 before it is multiplied with a position: transformers does so.
    void forget(const Rotary & rotary) {
        rotary_ = rotary;
        for (int32_t i = 0; i < rotary.n_pairs; i++) {
            frequencies_[i] = static_cast<float>(std::pow(
                static_cast<double>(rotary.base), -static_cast<double>(i) / rotary.n_pairs));
        }
        for (auto & position : positions_) {
            position = -1;
        }
    }

    void compute(int32_t position, Turn & turn) const {
        for (int32_t i = 0; i < rotary_.n_pairs; i++) {
            const float angle = static_cast<float>(position) * rotary_.scale * frequencies_[i];
            turn.cosines[i]   = std::cos(angle) * rotary_.magnitude;
            turn.sines[i]     = std::sin(angle) * rotary_.magnitude;
        }
    }

    Rotary  rotary_;
    float   frequencies_[kMostPairs];
    int32_t positions_[kSlots];
    Turn    turns_[kSlots];
};

}  // namespace inferos::kernels
