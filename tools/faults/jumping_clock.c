/* A wall clock that somebody sets: it jumps once, some seconds after jumping_clock_arm(). Load it with LD_PRELOAD.

   Clocks that nobody can set (CLOCK_MONOTONIC and others) are left alone, and so are the kernel's own times of files. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <sys/time.h>
#include <time.h>

static int (*clock_of_system)(clockid_t, struct timespec *);
static double jumps_at, jump; /* the moment of CLOCK_MONOTONIC, and seconds */

static double now(clockid_t clock) {
    struct timespec read;
    clock_of_system(clock, &read);
    return read.tv_sec + 1e-9 * read.tv_nsec;
}

static int system_clock(clockid_t clock, struct timespec *read) {
    if (!clock_of_system) clock_of_system = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    return clock_of_system(clock, read);
}

void jumping_clock_arm(double seconds, double shift) {
    struct timespec ready;
    system_clock(CLOCK_MONOTONIC, &ready);
    jumps_at = now(CLOCK_MONOTONIC) + seconds;
    jump = shift;
}

int clock_gettime(clockid_t clock, struct timespec *read) {
    int failed = system_clock(clock, read);
    int settable = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
    if (!failed && settable && jump != 0 && now(CLOCK_MONOTONIC) >= jumps_at) read->tv_sec += (time_t)jump;
    return failed;
}

int gettimeofday(struct timeval *restrict read, void *restrict zone) {
    (void)zone;
    struct timespec precise;
    int failed = clock_gettime(CLOCK_REALTIME, &precise);
    if (!failed) read->tv_sec = precise.tv_sec, read->tv_usec = precise.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *kept) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (kept) *kept = precise.tv_sec;
    return precise.tv_sec;
}
