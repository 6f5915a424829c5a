// Scores rows of logits: the log probability of the token that follows, and how far a candidate's
// distribution is from the reference's. In double precision, since a divergence of 1e-8 must
// differ from none; a thread takes a target at a time.
#include "inferos.h"
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <limits>

namespace {

// The logarithm of a row's sum of exponentials is largest + log(sum).
struct Row {
    const float * logits;
    int32_t       top;
    double        largest;
    double        sum = 0;

    Row(const float * logits, int64_t n)
        : logits(logits), top(int32_t(std::max_element(logits, logits + n) - logits)),
          largest(logits[top]) {}

    double exponential(int64_t i) const { return std::exp(logits[i] - largest); }
    double log_prob(int64_t i) const { return (logits[i] - largest) - std::log(sum); }
};

void score_target(const inferos_score_job & job, int64_t i, inferos_row_score & score) {
    const int64_t n      = job.n_vocab;
    const int64_t row    = job.rows ? job.rows[i] : i;
    const int32_t target = job.targets[i];
    Row           p(job.reference + row * n, n);
    score               = {};
    score.reference_top = p.top;
    if (!job.candidate) {
        for (int64_t i = 0; i < n; i++) {
            p.sum += p.exponential(i);
        }
        score.reference_log_prob = p.log_prob(target);
        return;
    }
    Row    q(job.candidate + row * n, n);
    double difference = 0;  // of the logits above their maxima, weighted by p, not normalized
    for (int64_t i = 0; i < n; i++) {
        const double weight = p.exponential(i);
        if (weight > 0) {  // where p is 0 nothing can be lost, whatever q says
            difference += weight * ((p.logits[i] - p.largest) - (q.logits[i] - q.largest));
        }
        p.sum += weight;
        q.sum += q.exponential(i);
    }
    // sum p (log p - log q); rounding may leave a negative trace between equal rows
    const double kl          = difference / p.sum - std::log(p.sum) + std::log(q.sum);
    score.kl                 = kl < 0 ? 0 : kl;
    score.reference_log_prob = p.log_prob(target);
    score.candidate_log_prob = q.log_prob(target);
    score.candidate_top      = q.top;
}

}  // namespace

INFEROS_API int32_t inferos_score_rows(const inferos_score_job * job, inferos_row_score * scores) {
    if (job->n_scores < 0 || job->n_rows < 0 || job->n_vocab < 1 ||
        job->n_vocab > std::numeric_limits<int32_t>::max()) {
        return INFEROS_BAD_SHAPE;
    }
    for (int64_t i = 0; i < job->n_scores; i++) {
        const int64_t row = job->rows ? job->rows[i] : i;
        if (row < 0 || row >= job->n_rows || job->targets[i] < 0 ||
            job->targets[i] >= job->n_vocab) {
            return INFEROS_BAD_ROW;
        }
    }
    std::atomic<int64_t> next{0};
    const auto           run = [job, scores, &next] {
        for (;;) {
            const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
            if (i >= job->n_scores) {
                return;
            }
            score_target(*job, i, scores[i]);
        }
    };
    try {
        // a share takes targets until there are none left
        inferos::in_parallel(std::max<int64_t>(1, std::min<int64_t>(job->n_threads, job->n_scores)),
                             [&run](int64_t) { run(); });
    } catch (const std::exception &) {
        return INFEROS_NO_MEMORY;
    }
    return INFEROS_OK;
}
