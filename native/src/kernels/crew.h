// How many threads of a team are called. Beside other programs fewer may be faster: two threads on two
// cores, one of which a third program wants, give the caller half a core, where a single thread would
// have a whole one. Nobody can tell from within which it is, so it is tried, and calls of the same kind
// are compared.
#pragma once

#include <cstdint>

namespace inferos::kernels {

// Times are nanoseconds of a steady clock.
class Crew {
  public:
    // Members for the next call, the caller among them, of at most `most`.
    int size(int64_t now, int most);

    // After that call, which took `elapsed`, `waited` of it waiting for others. Calls of the same kind take
    // the same time but for what disturbs them. preempted(): how often the caller has lost its core so far.
    template <class Preempted>
    void note(int64_t now, int64_t kind, int64_t elapsed, int64_t waited, Preempted preempted) {
        if (add(now, kind, elapsed, waited)) {
            const int64_t n = preempted();
            judge(now, preempted_ < 0 ? 0 : n - preempted_);
            preempted_ = n;
        }
    }

  private:
    struct Mean {
        int64_t kind = -1;
        double  time = 0;  // of n calls
        int64_t n    = 0;
    };
    static constexpr int kHashShift = 60, kKinds = 1 << (64 - kHashShift);

    bool add(int64_t now, int64_t kind, int64_t elapsed, int64_t waited);
    void judge(int64_t now, int64_t n_preempted);
    void end_trial(int64_t now);
    void watch();
    void try_out(int size);

    int     most_ = 0, size_ = 0;
    int     trial_         = 0;                 // what is tried; 0: nothing
    int     n_good_        = 0;                 // trials of a smaller crew, in a row
    Mean    means_[kKinds] = {};                // in this window, or the last before a trial
    int64_t n_ = 0, elapsed_ = 0, waited_ = 0;  // in this window, or trial
    double  expected_   = 0;                    // in the window's time, for the calls of a trial
    double  compared_   = 0;                    // theirs, as far as that is known
    int64_t preempted_  = -1;                   // not known
    int64_t last_       = 0;
    int64_t may_shrink_ = 0, may_grow_ = 0;  // not before
    int64_t shrink_pause_ = 0, grow_pause_ = 0;
};

}  // namespace inferos::kernels
