#include "crew.h"

namespace inferos::kernels {
namespace {

constexpr int64_t kMillisecond = 1'000'000;
// Calls are watched for this long before anything is tried, and tried for half as long.
constexpr int64_t kWindow = 100 * kMillisecond;
constexpr int64_t kTrial  = 50 * kMillisecond;
constexpr int64_t kFewest = 3;  // calls, at least
// A crew is changed for one that takes at most this much of its time, a smaller one if that is seen
// this often in a row: a single window may have had a stall.
constexpr double kWorthIt = 0.97;
constexpr int    kInARow  = 2;
// Signs that others want the cores: the caller lost its core so often in a window, or waited for this
// share of it.
constexpr int64_t kPreempted = 8;
constexpr double  kWaited    = 0.3;
// Between trials, doubled whenever one was in vain.
constexpr int64_t kShortestPause = 100 * kMillisecond;
constexpr int64_t kLongestPause  = 2000 * kMillisecond;
// After a longer break what was seen before says nothing.
constexpr int64_t kBreak = 1000 * kMillisecond;

int64_t longer(int64_t pause) {
    return pause == 0 ? kShortestPause : pause < kLongestPause / 2 ? 2 * pause : kLongestPause;
}

}  // namespace

int Crew::size(int64_t now, int most) {
    if (most != most_) {
        *this = {};
        most_ = size_ = most;
        last_         = now;
    } else if (now - last_ > kBreak) {
        trial_ = n_good_ = 0;
        preempted_       = -1;
        may_grow_        = now;
        watch();
    }
    return trial_ != 0 ? trial_ : size_;
}

// A new window
void Crew::watch() {
    n_ = elapsed_ = waited_ = 0;
    for (Mean & mean : means_) {
        mean = {};
    }
}

// What the next calls take in a crew of another size
void Crew::try_out(int size) {
    trial_ = size;
    n_ = elapsed_ = 0;
    expected_ = compared_ = 0;
}

// Whether the window is over, or the trial.
bool Crew::add(int64_t now, int64_t kind, int64_t elapsed, int64_t waited) {
    // the highest bits of Fibonacci hashing, as kinds are often multiples of a power of two
    Mean &     mean = means_[static_cast<uint64_t>(kind) * 0x9e3779b97f4a7c15 >> kHashShift];
    const auto time = static_cast<double>(elapsed);
    last_           = now;
    n_++;
    elapsed_ += elapsed;
    if (trial_ != 0) {
        if (mean.kind == kind) {
            expected_ += mean.time / static_cast<double>(mean.n);
            compared_ += time;
        }
        return n_ >= kFewest && elapsed_ >= kTrial;
    }
    waited_ += waited;
    if (mean.kind != kind) {
        mean = {kind, 0, 0};
    }
    mean.time += time;
    mean.n++;
    return n_ >= kFewest && elapsed_ >= kWindow;
}

void Crew::judge(int64_t now, int64_t n_preempted) {
    if (trial_ != 0) {
        end_trial(now);
        watch();
        return;
    }
    const auto elapsed   = static_cast<double>(elapsed_);
    const bool disturbed = static_cast<double>(waited_) > kWaited * elapsed ||
                           static_cast<double>(n_preempted) * static_cast<double>(kWindow) >
                               static_cast<double>(kPreempted) * elapsed;
    if (n_good_ > 0) {
        try_out(size_ - 1);
    } else if (size_ < most_ && now >= may_grow_) {
        try_out(size_ + 1);
    } else if (size_ > 1 && disturbed && now >= may_shrink_) {
        try_out(size_ - 1);
    } else {
        watch();
    }
}

void Crew::end_trial(int64_t now) {
    // most of it must be comparable
    const bool better =
        compared_ > static_cast<double>(elapsed_) / 2 && compared_ < kWorthIt * expected_;
    const bool smaller = trial_ < size_;
    n_good_            = better && smaller ? n_good_ + 1 : 0;
    if (better && (!smaller || n_good_ == kInARow)) {
        size_         = trial_;
        n_good_       = 0;
        shrink_pause_ = grow_pause_ = 0;
        may_grow_                   = smaller ? now + kLongestPause / 4 : now;
    } else if (!better && smaller) {
        shrink_pause_ = longer(shrink_pause_);
        may_shrink_   = now + shrink_pause_;
    } else if (!better) {
        grow_pause_ = longer(grow_pause_);
        may_grow_   = now + grow_pause_;
    }
    trial_ = 0;
}

}  // namespace inferos::kernels
