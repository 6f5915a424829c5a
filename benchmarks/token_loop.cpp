// llama.cpp's plain token loop in C++: the yardstick of token_loop.py. Same settings, same prompt,
// greedy, one batch reused. Prints the seconds of N single-token steps, once per round, when a line
// comes in on stdin, so that the two sides can take turns.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "llama.h"

int main(int argc, char ** argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: token_loop MODEL N_CTX N_THREADS N_STEPS LOAD\n"
                        "LOAD: 0 mapped, 1 copied, 2 copied into other layouts\n");
        return 2;
    }
    const int n_ctx = atoi(argv[2]), n_threads = atoi(argv[3]), n_steps = atoi(argv[4]);
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model_params mp = llama_model_default_params();
    mp.use_extra_bufts    = atoi(argv[5]) == 2;
    mp.load_mode          = atoi(argv[5]) != 0 ? LLAMA_LOAD_MODE_NONE : LLAMA_LOAD_MODE_MMAP;
    llama_model * model   = llama_model_load_from_file(argv[1], mp);
    if (!model) {
        return 1;
    }
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx                = n_ctx;
    cp.n_batch = cp.n_ubatch = n_ctx < 512 ? n_ctx : 512;
    cp.n_outputs_max         = 1;
    cp.n_threads = cp.n_threads_batch = n_threads;
    cp.no_perf                        = true;
    llama_context * ctx               = llama_init_from_model(model, cp);
    llama_sampler * sampler = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(sampler, llama_sampler_init_greedy());
    llama_memory_t memory = llama_get_memory(ctx);

    char line[16];
    while (fgets(line, sizeof line, stdin)) {
        llama_memory_clear(memory, true);
        std::vector<llama_token> prompt = {1, 2, 3, 4, 5, 6, 7, 8};
        llama_decode(ctx, llama_batch_get_one(prompt.data(), (int32_t)prompt.size()));
        unsigned long long checksum = 0;
        const auto         start    = std::chrono::steady_clock::now();
        for (int i = 0; i < n_steps; i++) {
            llama_token token = llama_sampler_sample(sampler, ctx, -1);
            checksum          = checksum * 31 + (unsigned)token;
            if (llama_decode(ctx, llama_batch_get_one(&token, 1)) != 0) {
                return 1;
            }
        }
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        printf("%.9f %llu\n", took.count(), checksum);
        fflush(stdout);
    }
    llama_sampler_free(sampler);
    llama_free(ctx);
    llama_model_free(model);
    return 0;
}
