/* A wall clock that is AHEAD seconds ahead, for a program that loads this before the C library. It allocates nothing and reads no setting:
 * what allocates asks for the time at its own start. The kernel's clock stays true, so deadlines are told to the kernel by its own. */

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

/* A moment before it is one of the clock since boot, which is true. */
#define WALL 1000000000

static struct timespec kernels(const struct timespec *moment) {
    return (struct timespec){.tv_sec = moment->tv_sec - AHEAD, .tv_nsec = moment->tv_nsec};
}

static int of_threads(int error) {
    return error == 0 ? thrd_success : error == ETIMEDOUT ? thrd_timedout : thrd_error;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (syscall(SYS_clock_gettime, clock, now)) return -1;
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += AHEAD;
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
    *now = (struct timeval){.tv_sec = exact.tv_sec, .tv_usec = exact.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}

int timespec_get(struct timespec *now, int base) {
    return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, now) ? base : 0;
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *pause, struct timespec *left) {
    struct timespec end = clock == CLOCK_REALTIME && (flags & TIMER_ABSTIME) ? kernels(pause) : *pause;
    return syscall(SYS_clock_nanosleep, clock, flags, &end, left) ? errno : 0;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex, const struct timespec *restrict end) {
    if (end->tv_sec < WALL) return pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, end);
    struct timespec true_end = kernels(end);
    return pthread_cond_clockwait(condition, mutex, CLOCK_REALTIME, &true_end);
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict end) {
    return of_threads(pthread_cond_timedwait((pthread_cond_t *)condition, (pthread_mutex_t *)mutex, end));
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict end) {
    struct timespec true_end = kernels(end);
    return pthread_mutex_clocklock(mutex, CLOCK_REALTIME, &true_end);
}

int mtx_timedlock(mtx_t *restrict mutex, const struct timespec *restrict end) {
    return of_threads(pthread_mutex_timedlock((pthread_mutex_t *)mutex, end));
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict end) {
    struct timespec true_end = kernels(end);
    return sem_clockwait(semaphore, CLOCK_REALTIME, &true_end);
}
