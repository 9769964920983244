/*
 * Runs a program and kills at one of its points: right before a system call that changes the disk or a lock.
 *
 *   crash-tracer --watch DIRECTORY --report FILE [--kill LABEL:NUMBER --mode process|group|program]
 *     -- PROGRAM [ARGUMENT…]
 *
 * strace(1) counts the system calls of each process for itself and can kill nothing but the one that makes
 * the call; here a point is the NUMBER-th of all that carry a LABEL, and the call is not made by whoever is
 * killed (seccomp(2), SECCOMP_RET_TRACE: a tracee that is killed while it stops there skips the call).
 *
 * LABEL: "program" is PROGRAM itself, "collector" another run of its executable, "spawn" a child that has not
 * executed anything yet, else the name of what the process executes. The report has a line for each point,
 * "LABEL:NUMBER CALL WHAT", and "KILLED LABEL:NUMBER" for the one that was killed at.
 *
 * It ends when all that it traces has ended, but for the holders of leases: those live on.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define TASKS_MAX 4096
#define LABELS_MAX 64
#define TEXT_MAX 8192

/* How a call names what it changes. */
enum kind { PATH_AT_0, PATH_AT_1, OPENED_AT_1, DESCRIPTOR, WRITTEN, LOCKED, CLOSED, SIGNALLED, EXECUTED, FORKED, FORKED3 };

static const struct call {
  int number;
  const char *name;
  enum kind kind;
} calls[] = {
#ifdef SYS_open
  {SYS_open, "open", PATH_AT_0}, {SYS_creat, "creat", PATH_AT_0}, {SYS_mkdir, "mkdir", PATH_AT_0},
  {SYS_rename, "rename", PATH_AT_0}, {SYS_unlink, "unlink", PATH_AT_0}, {SYS_rmdir, "rmdir", PATH_AT_0},
  {SYS_link, "link", PATH_AT_0}, {SYS_symlink, "symlink", PATH_AT_0}, {SYS_mknod, "mknod", PATH_AT_0},
  {SYS_chmod, "chmod", PATH_AT_0}, {SYS_chown, "chown", PATH_AT_0}, {SYS_lchown, "lchown", PATH_AT_0},
  {SYS_utime, "utime", PATH_AT_0}, {SYS_utimes, "utimes", PATH_AT_0}, {SYS_futimesat, "futimesat", PATH_AT_1},
  {SYS_fork, "fork", FORKED}, {SYS_vfork, "vfork", FORKED},
#endif
  {SYS_openat, "openat", OPENED_AT_1}, {SYS_mkdirat, "mkdirat", PATH_AT_1},
#ifdef SYS_renameat
  {SYS_renameat, "renameat", PATH_AT_1},
#endif
  {SYS_renameat2, "renameat2", PATH_AT_1}, {SYS_unlinkat, "unlinkat", PATH_AT_1}, {SYS_linkat, "linkat", PATH_AT_1},
  {SYS_symlinkat, "symlinkat", PATH_AT_1}, {SYS_mknodat, "mknodat", PATH_AT_1}, {SYS_fchmodat, "fchmodat", PATH_AT_1},
  {452, "fchmodat2", PATH_AT_1}, {SYS_fchownat, "fchownat", PATH_AT_1}, {SYS_utimensat, "utimensat", PATH_AT_1},
  {SYS_truncate, "truncate", PATH_AT_0}, {SYS_setxattr, "setxattr", PATH_AT_0}, {SYS_lsetxattr, "lsetxattr", PATH_AT_0},
  {SYS_fchmod, "fchmod", DESCRIPTOR}, {SYS_fchown, "fchown", DESCRIPTOR}, {SYS_ftruncate, "ftruncate", DESCRIPTOR},
  {SYS_fallocate, "fallocate", DESCRIPTOR}, {SYS_fsetxattr, "fsetxattr", DESCRIPTOR}, {SYS_fsync, "fsync", DESCRIPTOR},
  {SYS_fdatasync, "fdatasync", DESCRIPTOR}, {SYS_write, "write", WRITTEN}, {SYS_pwrite64, "pwrite64", WRITTEN},
  {SYS_writev, "writev", WRITTEN}, {SYS_pwritev, "pwritev", WRITTEN}, {SYS_sendfile, "sendfile", WRITTEN},
  {SYS_flock, "flock", LOCKED}, {SYS_close, "close", CLOSED}, {SYS_kill, "kill", SIGNALLED},
  {SYS_execve, "execve", EXECUTED}, {SYS_clone, "clone", FORKED}, {SYS_clone3, "clone3", FORKED3},
};
#define CALLS (sizeof(calls) / sizeof(*calls))

struct task {
  pid_t id;
  pid_t process;
  int has_executed;
  int is_holder;
};

static struct task tasks[TASKS_MAX];
static int task_count;
static struct {
  char name[64];
  int points;
} labels[LABELS_MAX];
static const long trace_options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
                                  PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
static const char *watched, *kill_label, *kill_mode = "process";
static int kill_number = -1;
static pid_t program;
static FILE *report;

static void die(const char *what) {
  perror(what);
  exit(125);
}

static int install_filter(void) {
  struct sock_filter filter[8 + 2 * CALLS + 8];
  unsigned size = 0;
  /* 64-bit programs of this machine only: another architecture's numbers mean other calls. */
  filter[size++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
  for (unsigned i = 0; i < CALLS; i++) {
    filter[size++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i].number, 0, 1);
    if (calls[i].kind == OPENED_AT_1) {
      /* Most opens only read: a jump to the look at the flags, which follows the list. */
      filter[size++] = (struct sock_filter)BPF_STMT(BPF_JMP | BPF_JA, 2 * (unsigned)(CALLS - i - 1) + 1);
    } else {
      filter[size++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    }
  }
  filter[size++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  filter[size++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2]));
  filter[size++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_CREAT | O_TRUNC, 0, 1);
  filter[size++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
  filter[size++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  struct sock_fprog code = {.len = (unsigned short)size, .filter = filter};
  return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &code);
}

static pid_t process_of(pid_t id) {
  char path[64], line[256];
  pid_t process = id;
  snprintf(path, sizeof path, "/proc/%d/status", id);
  FILE *file = fopen(path, "r");
  if (file == NULL) return id;
  while (fgets(line, sizeof line, file) != NULL)
    if (sscanf(line, "Tgid: %d", &process) == 1) break;
  fclose(file);
  return process;
}

static struct task *task_of(pid_t id) {
  for (int i = 0; i < task_count; i++)
    if (tasks[i].id == id) return &tasks[i];
  if (task_count == TASKS_MAX) die("too many tasks");
  struct task *task = &tasks[task_count++];
  *task = (struct task){.id = id, .process = process_of(id), .has_executed = 0, .is_holder = 0};
  return task;
}

static void forget(pid_t id) {
  for (int i = 0; i < task_count; i++)
    if (tasks[i].id == id) tasks[i] = tasks[--task_count];
}

static int has_executed(pid_t process) {
  for (int i = 0; i < task_count; i++)
    if (tasks[i].id == process) return tasks[i].has_executed;
  return 1;
}

static void read_link(const char *path, char *text) {
  ssize_t length = readlink(path, text, TEXT_MAX - 1);
  text[length < 0 ? 0 : length] = '\0';
}

static void read_descriptor(pid_t id, int fd, char *text) {
  char path[64];
  if (fd == AT_FDCWD)
    snprintf(path, sizeof path, "/proc/%d/cwd", id);
  else
    snprintf(path, sizeof path, "/proc/%d/fd/%d", id, fd);
  read_link(path, text);
}

static void read_text(pid_t id, unsigned long address, char *text) {
  size_t length = 0;
  text[0] = '\0';
  while (length < TEXT_MAX - 1) {
    /* Not across a page: the next may not be there. */
    size_t size = 4096 - (address + length) % 4096;
    if (size > TEXT_MAX - 1 - length) size = TEXT_MAX - 1 - length;
    struct iovec here = {text + length, size}, there = {(void *)(address + length), size};
    ssize_t count = process_vm_readv(id, &here, 1, &there, 1, 0);
    if (count <= 0) break;
    if (memchr(text + length, '\0', (size_t)count) != NULL) return;
    length += (size_t)count;
  }
  text[length] = '\0';
}

/* The path that a call means, with /proc/self/fd/N/… and relative ones led back to what they stand for. */
static void resolve(pid_t id, int directory, unsigned long address, char *text) {
  static const char self[] = "/proc/self/fd/";
  char path[TEXT_MAX], base[TEXT_MAX];
  read_text(id, address, path);
  if (strncmp(path, self, sizeof self - 1) == 0) {
    char *rest;
    read_descriptor(id, (int)strtol(path + sizeof self - 1, &rest, 10), base);
    snprintf(text, TEXT_MAX, "%.4000s%.4000s", base, rest);
  } else if (path[0] == '/') {
    snprintf(text, TEXT_MAX, "%s", path);
  } else {
    read_descriptor(id, directory, base);
    snprintf(text, TEXT_MAX, "%.4000s/%.4000s", base, path);
  }
}

static int is_watched(const char *path) {
  size_t length = strlen(watched);
  if (strncmp(path, watched, length) == 0 && (path[length] == '/' || path[length] == '\0')) return 1;
  return strncmp(path, "/proc/", 6) == 0 && strstr(path, "/oom_score_adj") != NULL;
}

static int ends_with(const char *text, const char *end) {
  size_t length = strlen(text), wanted = strlen(end);
  return length >= wanted && strcmp(text + length - wanted, end) == 0;
}

/* Whether a call changes the disk or a lock; then `what` tells of what. */
static int is_point(pid_t id, const struct call *call, const unsigned long long *arguments, char *what) {
  struct stat stats;
  unsigned long long flags;
  switch (call->kind) {
    case PATH_AT_0:
      resolve(id, AT_FDCWD, arguments[0], what);
      return is_watched(what);
    case PATH_AT_1:
    case OPENED_AT_1:
      if (call->kind == PATH_AT_1 && arguments[1] == 0)
        read_descriptor(id, (int)arguments[0], what);
      else
        resolve(id, (int)arguments[0], arguments[1], what);
      return is_watched(what);
    case DESCRIPTOR:
    case WRITTEN:
      read_descriptor(id, (int)arguments[0], what);
      return is_watched(what);
    case LOCKED:
      read_descriptor(id, (int)arguments[0], what);
      return 1;
    case CLOSED:
      /* The end of a lock, where it is the last descriptor. */
      read_descriptor(id, (int)arguments[0], what);
      return is_watched(what) && (ends_with(what, ".lock") || ends_with(what, "_lock"));
    case SIGNALLED:
      snprintf(what, TEXT_MAX, "signal %d", (int)arguments[1]);
      return arguments[1] != 0;
    case EXECUTED:
      resolve(id, AT_FDCWD, arguments[0], what);
      return stat(what, &stats) == 0;
    case FORKED:
      snprintf(what, TEXT_MAX, "process");
      return strcmp(call->name, "clone") != 0 || (arguments[0] & 0x00010000) == 0;
    case FORKED3: {
      struct iovec here = {&flags, sizeof flags}, there = {(void *)(unsigned long)arguments[0], sizeof flags};
      snprintf(what, TEXT_MAX, "process");
      return process_vm_readv(id, &here, 1, &there, 1, 0) == sizeof flags && (flags & 0x00010000) == 0;
    }
  }
  return 0;
}

static const char *label_of(const struct task *task, char *text) {
  char path[64], file[TEXT_MAX], own[TEXT_MAX];
  if (!has_executed(task->process)) return "spawn";
  snprintf(path, sizeof path, "/proc/%d/exe", task->process);
  read_link(path, file);
  const char *name = strrchr(file, '/') == NULL ? file : strrchr(file, '/') + 1;
  snprintf(path, sizeof path, "/proc/%d/exe", program);
  read_link(path, own);
  if (strcmp(name, "container-cache") == 0) return task->process == program ? "program" : "collector";
  snprintf(text, 64, "%.60s", name);
  return text;
}

static void meet(struct task *task) {
  struct __ptrace_syscall_info info;
  char what[TEXT_MAX], text[64];
  if (ptrace(PTRACE_GET_SYSCALL_INFO, task->id, sizeof info, &info) <= 0) return;
  const struct call *call = NULL;
  for (unsigned i = 0; i < CALLS; i++)
    if ((unsigned long long)calls[i].number == info.seccomp.nr) call = &calls[i];
  if (task->is_holder || call == NULL || !is_point(task->id, call, (const unsigned long long *)info.seccomp.args, what)) return;
  const char *label = label_of(task, text);
  int index = 0;
  while (index < LABELS_MAX - 1 && labels[index].name[0] != '\0' && strcmp(labels[index].name, label) != 0) index++;
  snprintf(labels[index].name, sizeof labels[index].name, "%s", label);
  int number = ++labels[index].points;
  fprintf(report, "%s:%d %s %s\n", label, number, call->name, what);
  if (number != kill_number || strcmp(label, kill_label) != 0) return;
  fprintf(report, "KILLED %s:%d\n", label, number);
  fflush(report);
  if (strcmp(kill_mode, "group") == 0)
    kill(-program, SIGKILL);
  else
    kill(strcmp(kill_mode, "program") == 0 ? program : task->process, SIGKILL);
}

static int is_holder(pid_t id) {
  static const char variable[] = "CONTAINER_CACHE_LEASE=";
  char path[64], text[4096] = "";
  snprintf(path, sizeof path, "/proc/%d/environ", id);
  FILE *file = fopen(path, "r");
  if (file == NULL) return 0;
  size_t length = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  return length >= sizeof variable - 1 && strncmp(text, variable, sizeof variable - 1) == 0;
}

/*
 * Whether nothing is left but holders that sleep. Not before: while one still starts, the calls of the list
 * would fail without us.
 */
static int only_holders_sleep(void) {
  for (int i = 0; i < task_count; i++) {
    char path[64];
    int number = -1;
    if (!tasks[i].is_holder) return 0;
    snprintf(path, sizeof path, "/proc/%d/syscall", tasks[i].id);
    FILE *file = fopen(path, "r");
    if (file == NULL) continue;
    if (fscanf(file, "%d", &number) != 1) number = -1;
    fclose(file);
#ifdef SYS_pause
    if (number == SYS_pause) continue;
#else
    if (number == SYS_ppoll) continue;
#endif
    return 0;
  }
  return task_count > 0;
}

/* Returns the exit code of the program. */
static int trace(void) {
  int status, exit_code = 125;
  pid_t id;
  while (!only_holders_sleep()) {
    int are_holders = 1;
    for (int i = 0; i < task_count; i++) are_holders = are_holders && tasks[i].is_holder;
    id = waitpid(-1, &status, __WALL | (are_holders ? WNOHANG : 0));
    if (id < 0 && errno == ECHILD) break;
    if (id <= 0) {
      usleep(1000);
      continue;
    }
    if (WIFEXITED(status) || WIFSIGNALED(status)) {
      forget(id);
      if (id == program) exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      continue;
    }
    struct task *task = task_of(id);
    int signal = WSTOPSIG(status), event = status >> 16;
    if (event == PTRACE_EVENT_SECCOMP) meet(task);
    if (event == PTRACE_EVENT_EXEC) {
      task->has_executed = 1;
      task->is_holder = is_holder(id);
      /* It outlives us. */
      if (task->is_holder) ptrace(PTRACE_SETOPTIONS, id, NULL, (void *)(trace_options & ~(long)PTRACE_O_EXITKILL));
    }
    int is_group_stop = event == PTRACE_EVENT_STOP && signal != SIGTRAP;
    if (is_group_stop)
      ptrace(PTRACE_LISTEN, id, NULL, NULL);
    else
      ptrace(PTRACE_CONT, id, NULL, (void *)(long)(event != 0 ? 0 : signal));
  }
  return exit_code;
}

int main(int count, char **arguments) {
  int at = 1;
  for (; at + 1 < count && strcmp(arguments[at], "--") != 0; at += 2) {
    char *value = arguments[at + 1];
    if (strcmp(arguments[at], "--watch") == 0)
      watched = value;
    else if (strcmp(arguments[at], "--report") == 0)
      report = fopen(value, "we");
    else if (strcmp(arguments[at], "--mode") == 0)
      kill_mode = value;
    else if (strcmp(arguments[at], "--kill") == 0 && strrchr(value, ':') != NULL) {
      kill_number = atoi(strrchr(value, ':') + 1);
      *strrchr(value, ':') = '\0';
      kill_label = value;
    }
  }
  if (watched == NULL || report == NULL || at + 1 >= count) {
    fprintf(stderr, "crash-tracer: wrong usage\n");
    return 125;
  }
  int go[2];
  if (pipe2(go, O_CLOEXEC) != 0) die("pipe2");
  program = fork();
  if (program < 0) die("fork");
  if (program == 0) {
    char byte;
    setpgid(0, 0);
    if (read(go[0], &byte, 1) != 1 || install_filter() != 0) _exit(126);
    execv(arguments[at + 1], arguments + at + 1);
    _exit(127);
  }
  setpgid(program, program);
  if (ptrace(PTRACE_SEIZE, program, NULL, (void *)trace_options) != 0) die("ptrace");
  task_of(program);
  if (write(go[1], "x", 1) != 1) die("write");
  int exit_code = trace();
  fclose(report);
  return exit_code;
}
