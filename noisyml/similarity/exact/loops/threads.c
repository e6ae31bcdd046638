/* Runs a loop on several jobs at once, in threads of PyTorch or of our own. */

#include <pthread.h>
#include <stddef.h>

#include "loops.h"

/* GOMP_parallel(): runs `work` on `threads` threads that it keeps. */
typedef void (*Team)(void (*work)(void *), void *given, unsigned threads, unsigned flags);

typedef struct {
    Loop loop;
    char *jobs;
    int64_t size, n, taken;
    int result;
} Work;

/* Does jobs until there are none left. */
static void do_jobs(void *given) {
    Work *work = given;
    for (;;) {
        const int64_t i = __atomic_fetch_add(&work->taken, 1, __ATOMIC_RELAXED);
        if (i >= work->n) return;
        const int result = work->loop(work->jobs + i * work->size);
        int largest = __atomic_load_n(&work->result, __ATOMIC_RELAXED);
        while (result > largest &&
               !__atomic_compare_exchange_n(
                   &work->result, &largest, result, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        }
    }
}

static void *started(void *given) {
    do_jobs(given);
    return NULL;
}

/* Runs `loop` on each of `n` jobs of `size` bytes by at most `threads` threads, each of which takes
 * the next job when it is done with one; the largest of what they return. The threads are those of
 * `team`: whoever else uses them lets them spin for a while when he is done, and threads of our own
 * would get less of the processor meanwhile. Without a team they are our own, and gone when this
 * returns. */
EXPORT int noisyml_in_threads(
    Team team, Loop loop, char *jobs, int64_t size, int64_t n, int64_t threads
) {
    Work work = {loop, jobs, size, n, 0, DONE};
    if (threads > n) threads = n;
    if (threads > 1 && team) {
        team(do_jobs, &work, (unsigned)threads, 0);
        return work.result;
    }
    pthread_t *others = threads > 1 ? malloc((size_t)(threads - 1) * sizeof *others) : NULL;
    int64_t running = 0;
    /* Where a thread cannot be had the others do its jobs. */
    while (others && running < threads - 1 &&
           !pthread_create(&others[running], NULL, started, &work))
        running++;
    do_jobs(&work);
    for (int64_t i = 0; i < running; i++) pthread_join(others[i], NULL);
    free(others);
    return work.result;
}
