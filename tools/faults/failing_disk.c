/* A disk that fails: the call number `nth` of a kind, on files under one folder, ends in an error or a short write.

   Load it with LD_PRELOAD. It does nothing until failing_disk_arm() is called. Writes through a memory map and the
   inner calls of the C library (fwrite on a FILE) do not pass here. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITE, SYNC, RENAME, OPEN, KINDS };

static char watched[PATH_MAX];
static size_t watched_length; /* 0: not armed */
static int failing, failure, stays;
static long failing_at;
static atomic_long counted[KINDS];

/* Count calls on files under `folder`. Call `nth` (from 1; 0: none) of `kind` fails with `error`, or writes half if
   `error` is 0; with `lasting`, all later calls of any kind fail too. */
void failing_disk_arm(const char *folder, int kind, long nth, int error, int lasting) {
    snprintf(watched, sizeof watched, "%s/", folder);
    failing = kind, failing_at = nth, failure = error, stays = lasting;
    for (int each = 0; each < KINDS; each++) counted[each] = 0;
    watched_length = strlen(watched);
}

long failing_disk_count(int kind) { return counted[kind]; }

static int under(const char *path) {
    char whole[2 * PATH_MAX], folder[PATH_MAX];
    if (path[0] == '/') return !strncmp(path, watched, watched_length);
    if (!getcwd(folder, sizeof folder)) return 0;
    snprintf(whole, sizeof whole, "%s/%s", folder, path);
    return !strncmp(whole, watched, watched_length);
}

static int under_file(int file) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return under(path);
}

static int fails(enum kind kind) {
    long number = ++counted[kind];
    if (!failing_at) return 0;
    if (kind == failing) return number == failing_at || (stays && number > failing_at);
    return stays && failure && counted[failing] >= failing_at;
}

#define NEXT(name) static __typeof__(&name) next; if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL_OR_GO(condition, kind) \
    do { if (watched_length && (condition) && fails(kind) && failure) { errno = failure; return -1; } } while (0)

static size_t shortened(size_t size) { return size > 1 ? size / 2 : size; }

#define WRITER(name, parameters, call, short_call) \
    ssize_t name parameters { \
        NEXT(name); \
        if (watched_length && under_file(file) && fails(WRITE)) { \
            if (!failure) return short_call; \
            errno = failure; \
            return -1; \
        } \
        return call; \
    }

WRITER(write, (int file, const void *data, size_t size), next(file, data, size), next(file, data, shortened(size)))
WRITER(pwrite, (int file, const void *data, size_t size, off_t at), next(file, data, size, at),
       next(file, data, shortened(size), at))
WRITER(pwrite64, (int file, const void *data, size_t size, off64_t at), next(file, data, size, at),
       next(file, data, shortened(size), at))
WRITER(writev, (int file, const struct iovec *parts, int count), next(file, parts, count), next(file, parts, 1))

int posix_fallocate(int file, off_t at, off_t size) {
    NEXT(posix_fallocate);
    if (watched_length && under_file(file) && fails(WRITE) && failure) return failure;
    return next(file, at, size);
}
int fsync(int file) {
    NEXT(fsync);
    FAIL_OR_GO(under_file(file), SYNC);
    return next(file);
}
int fdatasync(int file) {
    NEXT(fdatasync);
    FAIL_OR_GO(under_file(file), SYNC);
    return next(file);
}
int rename(const char *from, const char *to) {
    NEXT(rename);
    FAIL_OR_GO(under(to), RENAME);
    return next(from, to);
}
int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    NEXT(renameat2);
    FAIL_OR_GO(under(to), RENAME);
    return next(from_folder, from, to_folder, to, flags);
}
int link(const char *from, const char *to) {
    NEXT(link);
    FAIL_OR_GO(under(to), RENAME);
    return next(from, to);
}
int mkdir(const char *path, mode_t mode) {
    NEXT(mkdir);
    FAIL_OR_GO(under(path), OPEN);
    return next(path, mode);
}

#define WRITES(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & O_CREAT))
#define MODE(flags, last) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list more; va_start(more, last); mode = va_arg(more, mode_t); va_end(more); }

int open(const char *path, int flags, ...) {
    NEXT(open);
    MODE(flags, flags)
    FAIL_OR_GO(WRITES(flags) && under(path), OPEN);
    return next(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    NEXT(open64);
    MODE(flags, flags)
    FAIL_OR_GO(WRITES(flags) && under(path), OPEN);
    return next(path, flags, mode);
}
int openat(int folder, const char *path, int flags, ...) {
    NEXT(openat);
    MODE(flags, flags)
    FAIL_OR_GO(WRITES(flags) && under(path), OPEN);
    return next(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
    NEXT(openat64);
    MODE(flags, flags)
    FAIL_OR_GO(WRITES(flags) && under(path), OPEN);
    return next(folder, path, flags, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    NEXT(fopen64);
    if (watched_length && mode[0] != 'r' && under(path) && fails(OPEN) && failure) {
        errno = failure;
        return NULL;
    }
    return next(path, mode);
}
FILE *fopen(const char *path, const char *mode) {
    NEXT(fopen);
    if (watched_length && mode[0] != 'r' && under(path) && fails(OPEN) && failure) {
        errno = failure;
        return NULL;
    }
    return next(path, mode);
}
