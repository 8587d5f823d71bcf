/* Preloaded into the node by scripts/chaos-chain.sh: a disk that stalls now and then, so that
 * kills fall between a write and its acknowledgement. Syncs really happen, only later. */
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void stall(void) {
    struct timespec now, pause = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    long lot = now.tv_nsec / 1000 % 100;
    /* Mostly a good SSD, sometimes a tired one, sometimes one that collects its garbage. */
    pause.tv_nsec = (lot < 70 ? 1 : lot < 93 ? 30 : 300) * 1000000L;
    nanosleep(&pause, NULL);
}

int fdatasync(int fd) {
    stall();
    return (int)syscall(SYS_fdatasync, fd);
}

int fsync(int fd) {
    stall();
    return (int)syscall(SYS_fsync, fd);
}
