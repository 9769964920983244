/*
 * How the test plugin calls `enroot`: like pyxis 0.24, down to descriptors, signals and the text of the file
 * for `start --conf`. What it calls it for is in spank_pyxis_containers.c.
 */
#define _GNU_SOURCE
#include "spank_pyxis_enroot.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <slurm/spank.h>

#include "spank_pyxis_options.h"

#define BATCH_SCRIPT_FLAGS "x-create=file,bind,ro,nosuid,nodev,private"

/* What the last `enroot` printed: a file in memory, or -1. */
static int log_fd = -1;

static void open_log(void)
{
	if (log_fd >= 0)
		close(log_fd);
	log_fd = memfd_create("enroot-log", MFD_CLOEXEC);
}

void show_enroot_log(bool as_error)
{
	char *line = NULL;
	size_t size = 0;
	FILE *file;

	if (log_fd < 0 || lseek(log_fd, 0, SEEK_SET) < 0 || (file = fdopen(log_fd, "r")) == NULL)
		return;
	log_fd = -1;
	if (as_error)
		slurm_error("pyxis: printing enroot log file:");
	while (getline(&line, &size, file) >= 0) {
		line[strcspn(line, "\n")] = '\0';
		if (as_error)
			slurm_error("pyxis:     %s", line);
		else
			slurm_spank_log("%s", line);
	}
	free(line);
	fclose(file);
}

/*
 * In the child: no input, the log as output (but for stdout, if output_fd is none below 0), nothing else
 * open, no rights but the user's.
 */
static int become(const struct enroot_user *user, int output_fd)
{
	const int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	int oom_fd;

	/* In the SPANK epilog descriptors 0 to 2 may be free, and the log may have got one of them. */
	if (log_fd >= 0 && log_fd <= STDERR_FILENO)
		log_fd = fcntl(log_fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	if (null_fd < 0 || dup2(null_fd, STDIN_FILENO) < 0)
		return -1;
	if (dup2(log_fd < 0 ? null_fd : log_fd, STDOUT_FILENO) < 0 || dup2(STDOUT_FILENO, STDERR_FILENO) < 0)
		return -1;
	if (output_fd >= 0 && dup2(output_fd, STDOUT_FILENO) < 0)
		return -1;
	oom_fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (oom_fd >= 0)
		dprintf(oom_fd, "0");
	if (close_range(STDERR_FILENO + 1, ~0U, 0) < 0)
		return -1;

	if (geteuid() == 0 && setgroups((size_t)user->group_count, user->groups) < 0)
		return -1;
	return setregid(user->gid, user->gid) < 0 || setreuid(user->uid, user->uid) < 0 ? -1 : 0;
}

pid_t start_enroot(const struct enroot_user *user, char *const arguments[])
{
	pid_t pid;

	slurm_verbose("pyxis: running enroot %s", arguments[1]);
	open_log();
	pid = fork();
	if (pid < 0)
		slurm_error("pyxis: cannot fork: %s", strerror(errno));
	if (pid != 0)
		return pid;
	if (become(user, -1) == 0)
		execvpe("enroot", arguments, user->environment == NULL ? environ : user->environment);
	_exit(EXIT_FAILURE);
}

static volatile sig_atomic_t is_terminated;

static void note_termination(int signal_number)
{
	(void)signal_number;
	is_terminated = 1;
}

/* Waits for a child; a SIGTERM that comes meanwhile is passed on to it. Returns waitpid's status, or -1. */
static int wait_for_child(pid_t pid)
{
	struct sigaction action = { .sa_handler = note_termination };
	struct sigaction before;
	int status;
	pid_t result;

	is_terminated = 0;
	sigaction(SIGTERM, &action, &before);
	do {
		result = waitpid(pid, &status, 0);
	} while (result < 0 && errno == EINTR && !is_terminated);
	sigaction(SIGTERM, &before, NULL);
	if (result < 0 && is_terminated) {
		slurm_error("pyxis: SIGTERM, passed on to enroot");
		kill(pid, SIGTERM);
		do {
			result = waitpid(pid, &status, 0);
		} while (result < 0 && errno == EINTR);
	}
	return result < 0 ? -1 : status;
}

static int end_of(pid_t pid, const char *program, const char *command)
{
	int status;

	if (pid < 0)
		return -1;
	status = wait_for_child(pid);
	if (status == 0)
		return 0;
	if (status > 0 && WIFSIGNALED(status))
		slurm_error("pyxis: %s %s: signal %d", program, command, WTERMSIG(status));
	else
		slurm_error("pyxis: %s %s: exit code %d", program, command, status < 0 ? -1 : WEXITSTATUS(status));
	return -1;
}

int run_enroot(const struct enroot_user *user, char *const arguments[])
{
	return end_of(start_enroot(user, arguments), "enroot", arguments[1]);
}

/* An importer is executed by its path, from the same process and with the same environment as enroot. */
static pid_t start_importer(const struct enroot_user *user, char *const arguments[], int output_fd)
{
	pid_t pid;

	open_log();
	pid = fork();
	if (pid < 0)
		slurm_error("pyxis: cannot fork: %s", strerror(errno));
	if (pid != 0)
		return pid;
	if (become(user, output_fd) == 0)
		execve(arguments[0], arguments, user->environment == NULL ? environ : user->environment);
	_exit(EXIT_FAILURE);
}

char *get_from_importer(const struct enroot_user *user, char *importer, char *uri)
{
	char *const arguments[] = { importer, "get", uri, NULL };
	char *line = NULL;
	size_t size = 0;
	FILE *output;
	pid_t pid;
	int fds[2];

	if (pipe(fds) < 0)
		return NULL;
	pid = start_importer(user, arguments, fds[1]);
	close(fds[1]);
	output = fdopen(fds[0], "r");
	if (getline(&line, &size, output) < 0) {
		free(line);
		line = NULL;
	}
	fclose(output);
	if (end_of(pid, importer, "get") == 0 && line != NULL && *line != '\0' && *line != '\n') {
		line[strcspn(line, "\n")] = '\0';
		return line;
	}
	show_enroot_log(true);
	free(line);
	return NULL;
}

int release_importer(const struct enroot_user *user, char *importer)
{
	char *const arguments[] = { importer, "release", NULL };

	if (end_of(start_importer(user, arguments, -1), importer, "release") == 0)
		return 0;
	show_enroot_log(true);
	return -1;
}

FILE *read_enroot(const struct enroot_user *user, char *const arguments[])
{
	FILE *file;

	if (run_enroot(user, arguments) < 0) {
		show_enroot_log(true);
		return NULL;
	}
	if (log_fd < 0 || lseek(log_fd, 0, SEEK_SET) < 0 || (file = fdopen(log_fd, "r")) == NULL)
		return NULL;
	log_fd = -1;
	return file;
}

/* A path as fstab(5) wants it. */
static void print_escaped(FILE *file, const char *path)
{
	for (; *path != '\0'; path++) {
		if (strchr(" \t\n\\", *path) != NULL)
			fprintf(file, "\\%03o", *path);
		else
			fputc(*path, file);
	}
}

static int print_mount(FILE *file, const char *from, const char *to, const char *flags)
{
	const char *standard_flags = NULL;

	if (*from == '.' || *from == '/')
		standard_flags = "x-create=auto,rbind";
	else if (strcmp(from, "tmpfs") == 0)
		standard_flags = "x-create=dir";
	else if (strcmp(from, "umount") == 0)
		standard_flags = "x-detach";
	if (standard_flags == NULL || (*to != '.' && *to != '/')) {
		slurm_error("pyxis: cannot mount \"%s\" at \"%s\"", from, to);
		return -1;
	}
	if (*from == '/' && access(from, F_OK) < 0 && (errno == ENOENT || errno == ENOTDIR)) {
		slurm_error("pyxis: --container-mounts: source path does not exist: %s", from);
		return -1;
	}
	fprintf(file, "\techo \"");
	print_escaped(file, from);
	fputc(' ', file);
	print_escaped(file, to);
	fprintf(file, " %s%s%s\"\n", standard_flags, flags == NULL ? "" : ",", flags == NULL ? "" : flags);
	return 0;
}

/* SOURCE[:TARGET[:FLAG+FLAG]][,...] */
static int print_mounts(FILE *file, const char *option)
{
	char *copy = strdup(option);
	char *rest = copy;
	char *mount;
	int result = 0;

	while (result == 0 && (mount = strsep(&rest, ",")) != NULL) {
		char *from = strsep(&mount, ":");
		char *to = mount == NULL ? from : strsep(&mount, ":");

		for (char *character = mount; character != NULL && *character != '\0'; character++)
			if (*character == '+')
				*character = ',';
		result = print_mount(file, from, to, mount == NULL || *mount == '\0' ? NULL : mount);
	}
	free(copy);
	return result;
}

/* Only with the parts that are needed. */
static int print_configuration(FILE *file, bool is_joined, bool runs_entrypoint, const char *batch_script)
{
	/* Who joins a container that runs has the mounts of that one. */
	const char *mounts = is_joined ? NULL : pyxis_option("container-mounts");
	const char *kept = pyxis_option("container-env");

	if (is_joined && pyxis_option("container-mounts") != NULL)
		slurm_spank_log("pyxis: ignoring --container-mounts when attaching to a running container");
	if (mounts != NULL || (batch_script != NULL && !is_joined)) {
		fprintf(file, "mounts() {\n");
		if (mounts != NULL && print_mounts(file, mounts) < 0)
			return -1;
		if (batch_script != NULL && print_mount(file, batch_script, batch_script, BATCH_SCRIPT_FLAGS) < 0)
			return -1;
		fprintf(file, "}\n");
	}
	if (!runs_entrypoint)
		fprintf(file, "hooks() {\n\techo 'exec \"$@\"' > ${ENROOT_ROOTFS}/etc/rc.local\n}\n");
	if (kept != NULL) {
		char *copy = strdup(kept);
		char *rest = copy;
		char *name;

		fprintf(file, "environ() {\n");
		while ((name = strsep(&rest, ",")) != NULL)
			fprintf(file, "\t[ -n \"${%s-}\" ] && echo \"%s=${%s}\" || :\n", name, name, name);
		fprintf(file, "}\n");
		free(copy);
	}
	return 0;
}

int write_start_configuration(char *path, bool is_joined, bool runs_entrypoint, const char *batch_script)
{
	const int fd = mkstemp(path);
	FILE *file;
	int result;

	if (fd < 0 || (file = fdopen(fd, "w")) == NULL) {
		slurm_error("pyxis: cannot write \"%s\": %s", path, strerror(errno));
		return -1;
	}
	result = print_configuration(file, is_joined, runs_entrypoint, batch_script);
	return fclose(file) == 0 ? result : -1;
}
