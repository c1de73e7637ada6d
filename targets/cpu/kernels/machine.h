/* What of the machine this process may use: cores, the smaller of its affinity and its cgroup's quota; and AMX's tiles. */
#ifndef AICC_MACHINE_H
#define AICC_MACHINE_H

#include "base.h"

#if defined(__linux__)
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The number that a small file starts with, and the one after it; -1 for what is not there. No stdio: no malloc. */
static inline void aicc_read_numbers(const char *path, int64_t number[2]) {
    char text[64] = {0};
    number[0] = number[1] = -1;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    int64_t length = (int64_t)read(file, text, sizeof text - 1);
    close(file);
    int found = 0;
    for (int64_t i = 0; i < length && found < 2; i++) {
        int is_digit = text[i] >= '0' && text[i] <= '9';
        if (is_digit) number[found] = AICC_MAX(number[found], 0) * 10 + (text[i] - '0');
        else found++; /* "max 100000" leaves the first number at -1 */
    }
}

static inline int32_t aicc_usable_cores(void) {
    unsigned long mask[64] = {0}; /* 4096 cores */
    int32_t cores = 0;
    if (syscall(SYS_sched_getaffinity, 0, sizeof mask, mask) > 0)
        for (unsigned i = 0; i < 64; i++) cores += __builtin_popcountl(mask[i]);
    cores = AICC_MAX(cores, 1);
    int64_t quota[2], period[2];
    aicc_read_numbers("/sys/fs/cgroup/cpu.max", quota); /* cgroup 2: "quota period" */
    period[0] = quota[1];
    if (quota[0] < 0) { /* cgroup 1 */
        aicc_read_numbers("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota);
        aicc_read_numbers("/sys/fs/cgroup/cpu/cpu.cfs_period_us", period);
    }
    if (quota[0] > 0 && period[0] > 0) cores = AICC_MIN(cores, (int32_t)((quota[0] + period[0] - 1) / period[0]));
    return cores;
}

#elif defined(AICC_SINGLE_THREAD)
static inline int32_t aicc_usable_cores(void) { return 1; }
#else
#include <unistd.h>
static inline int32_t aicc_usable_cores(void) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores < 1 ? 1 : (int32_t)cores;
}
#endif

/* Linux gives a process the tiles' registers when it asks: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). */
static inline int aicc_may_use_tiles(void) {
#if defined(__AMX_TILE__) && defined(__linux__)
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return 1;
#endif
}

#endif
