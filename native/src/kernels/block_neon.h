// 32 activations in 128-bit registers of arm64, to be quantized.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace {

class NeonBlock {
  public:
    explicit NeonBlock(const float * x) {
        for (int i = 0; i < 8; i++) {
            values_[i] = vld1q_f32(x + 4 * i);
        }
    }

    float largest() const {
        int32x4_t largest = vdupq_n_s32(0);
        for (const float32x4_t & v : values_) {
            largest = vmaxq_s32(largest, vreinterpretq_s32_f32(vabsq_f32(v)));
        }
        const int32_t bits = vmaxvq_s32(largest);
        float         value;
        __builtin_memcpy(&value, &bits, 4);
        return value;
    }

    static float as_half(float value) {
        return vgetq_lane_f32(vcvt_f32_f16(vcvt_f16_f32(vdupq_n_f32(value))), 0);
    }

    void quantize(float inverse, uint8_t * quants, int32_t * sums) const {
        for (int half = 0; half < 2; half++) {
            int16x4_t ints[4];
            for (int i = 0; i < 4; i++) {
                ints[i] = vmovn_s32(rounded(vmulq_n_f32(values_[4 * half + i], inverse)));
            }
            const int8x16_t bytes = vcombine_s8(vmovn_s16(vcombine_s16(ints[0], ints[1])),
                                                vmovn_s16(vcombine_s16(ints[2], ints[3])));
            vst1q_u8(quants + 16 * half, vreinterpretq_u8_s8(bytes));
            sums[half] = vaddlvq_s8(bytes);
        }
    }

  private:
    static int32x4_t rounded(float32x4_t v) {
        const uint32x4_t fits = vcaleq_f32(v, vdupq_n_f32(127.5f));  // not for NaN
        return vbslq_s32(fits, vcvtnq_s32_f32(v), vdupq_n_s32(-127));
    }

    float32x4_t values_[8];
};

}  // namespace
