/*
 * The half of the test plugin that starts containers: it runs `enroot` the way pyxis 0.24 does.
 *
 * What an `enroot` of our own could tell apart is the same: which calls are made, in which order, by which
 * process, with which arguments and environment, and what happens around a failure or a signal; how a call is
 * made is in spank_pyxis_enroot.c. It was written from what pyxis was seen doing, and has nothing of its
 * text:
 *
 *   post_opt (root)       the user's directory below runtime_path, for squashfs files on their way
 *   user_init (user)      the container's name; `list -f` if --container-name was given
 *   task_init (user)      the first task of the step: [import] create, or load; then start. The container's
 *                         shell stops itself. Every task joins its namespaces and takes its environment; the
 *                         last one continues it. With importer=: `IMPORTER get`, then create and `release`;
 *                         or, with use_squashfuse, start of its file
 *   task_exit (user)      the last task of the step: [export], [`IMPORTER release`], remove
 *   job_epilog (root)     container_scope=job: `list`, and `remove` of what is left of the job
 *
 * README.md, beside enroot's stand-in, says which functions of pyxis this is, and what is left out.
 *
 * Arguments in plugstack.conf: runtime_path=, execute_entrypoint=, container_scope=job|global,
 * use_enroot_load=, use_squashfuse=, importer=.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <slurm/slurm.h>
#include <slurm/spank.h>

#include "spank_pyxis_enroot.h"
#include "spank_pyxis_options.h"

#define PYXIS_VERSION "0.24.0"

struct settings {
	char runtime_path[PATH_MAX];
	bool execute_entrypoint;
	bool is_scope_job;
	bool use_enroot_load;
	bool use_squashfuse;
	char importer[PATH_MAX]; /* empty: none */
};

/* How the root filesystem comes about. */
enum source {
	SOURCE_EXISTING, /* a named container that is there */
	SOURCE_PATH,     /* create from a squashfs file */
	SOURCE_IMPORT,   /* import from a registry, then create */
	SOURCE_LOAD,     /* load from a registry */
	SOURCE_DIRECT,   /* start the squashfs file itself */
	SOURCE_IMPORTER, /* create from the file that the importer names, or start it */
};

/* What the tasks of a step share: they are children of the one process that mapped it. */
struct shared {
	pthread_mutex_t mutex;
	bool is_begun;
	atomic_uint joined_tasks;
	atomic_uint ended_tasks;
	pid_t shell_pid;     /* the container's shell, our child, stopped; -1: none */
	pid_t namespace_pid; /* whose namespaces the tasks join: the shell's, or a running container's */
};

static struct settings settings;
static bool is_enabled;  /* this step has a container */
static bool is_prepared; /* user_init succeeded */

static struct enroot_user user;
static uint32_t job_id;
static uint32_t step_id;
static uint32_t local_task_count;
static uint32_t total_task_count;
static char job_directory[PATH_MAX];
static char *batch_script;

static char *image;
static char *container_name;
static char *squashfs_path;
static enum source source;
static bool is_temporary;
static pid_t running_pid; /* of an existing container that runs; 0: it does not */
static struct shared *shared;

/* In the order in which they are joined. */
static const struct {
	const char *name;
	bool is_own;      /* every container has its own: joining that of this task would fail, and must */
	bool is_optional; /* of the kernel */
} namespaces[] = {
	{ "user", true, false }, { "cgroup", true, true }, { "mnt", true, false },
	{ "ipc", false, false }, { "uts", false, false },  { "net", false, false },
};
enum { NAMESPACE_COUNT = sizeof(namespaces) / sizeof(namespaces[0]) };

/* Variables of the job that `enroot` must not see. */
static const char *const denied_variables[] = {
	"PATH",
	"LD_LIBRARY_PATH",
	"LD_PRELOAD",
	"SLURM_PROCID",
	"SLURM_LOCALID",
	"SLURM_TASK_PID",
	"PMIX_RANK",
	"PMI_FD",
	"ENROOT_LIBRARY_PATH",
	"ENROOT_SYSCONF_PATH",
	"ENROOT_RUNTIME_PATH",
	"ENROOT_CACHE_PATH",
	"ENROOT_DATA_PATH",
	"ENROOT_TEMP_PATH",
	"ENROOT_ZSTD_OPTIONS",
	"ENROOT_TRANSFER_RETRIES",
	"ENROOT_CONNECT_TIMEOUT",
	"ENROOT_MAX_CONNECTIONS",
	"ENROOT_ALLOW_HTTP",
	NULL,
};

/* Options without a value that become a variable of enroot, with the value "y", or "n" for their opposite. */
static const struct {
	const char *option;
	const char *opposite;
	const char *variable;
} switches[] = {
	{ "container-mount-home", "no-container-mount-home", "ENROOT_MOUNT_HOME" },
	{ "container-remap-root", "no-container-remap-root", "ENROOT_REMAP_ROOT" },
	{ "container-writable", "container-readonly", "ENROOT_ROOTFS_WRITABLE" },
};

/* Of --container-unshare. */
static const struct {
	const char *name;
	const char *variable;
} unshared[] = {
	{ "net", "ENROOT_UNSHARE_NET" },
	{ "ipc", "ENROOT_UNSHARE_IPC" },
	{ "uts", "ENROOT_UNSHARE_UTS" },
};

__attribute__((format(printf, 1, 2))) static char *format(const char *pattern, ...)
{
	va_list arguments;
	char *text;

	va_start(arguments, pattern);
	if (vasprintf(&text, pattern, arguments) < 0)
		abort();
	va_end(arguments);
	return text;
}

static char *copy_of(const char *text)
{
	return format("%s", text);
}

static bool is_given(const char *option)
{
	return pyxis_option(option) != NULL;
}

static bool starts_with(const char *text, const char *prefix)
{
	return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* Whether a comma-separated list has this word. */
static bool list_has(const char *list, const char *word)
{
	const size_t length = strlen(word);

	for (const char *item = list; item != NULL; item = strchr(item, ',')) {
		if (*item == ',')
			item++;
		if (strncmp(item, word, length) == 0 && (item[length] == ',' || item[length] == '\0'))
			return true;
	}
	return false;
}

static int read_switch(const char *value, bool *result)
{
	static const char *const words[] = { "0", "false", "no", "n", "1", "true", "yes", "y" };

	for (int index = 0; index < 8; index++) {
		if (strcmp(value, words[index]) == 0) {
			*result = index >= 4;
			return 0;
		}
	}
	return -1;
}

/* Whether `argument` is NAME=...: then sets *value to what follows. */
static bool is_setting(const char *argument, const char *name, const char **value)
{
	const size_t length = strlen(name);

	*value = argument + length + 1;
	return starts_with(argument, name) && argument[length] == '=';
}

static int read_settings(int argument_count, char **arguments)
{
	settings = (struct settings){ .runtime_path = "/run/pyxis" };
	for (int index = 0; index < argument_count; index++) {
		const char *const argument = arguments[index];
		const char *value;
		int result = -1;

		if (is_setting(argument, "runtime_path", &value))
			result = snprintf(settings.runtime_path, PATH_MAX, "%s", value) < PATH_MAX ? 0 : -1;
		else if (is_setting(argument, "importer", &value))
			result = snprintf(settings.importer, PATH_MAX, "%s", value) < PATH_MAX ? 0 : -1;
		else if (is_setting(argument, "execute_entrypoint", &value))
			result = read_switch(value, &settings.execute_entrypoint);
		else if (is_setting(argument, "use_enroot_load", &value))
			result = read_switch(value, &settings.use_enroot_load);
		else if (is_setting(argument, "use_squashfuse", &value))
			result = read_switch(value, &settings.use_squashfuse);
		else if (is_setting(argument, "container_scope", &value)) {
			settings.is_scope_job = strcmp(value, "job") == 0;
			result = settings.is_scope_job || strcmp(value, "global") == 0 ? 0 : -1;
		}
		if (result != 0) {
			slurm_error("pyxis: cannot use the argument \"%s\"", argument);
			return -1;
		}
	}
	return 0;
}

static bool runs_entrypoint(void)
{
	if (is_given("container-entrypoint"))
		return true;
	return settings.execute_entrypoint && !is_given("no-container-entrypoint");
}

/* ---- what the job is ---- */

static bool is_denied(const char *variable)
{
	for (int index = 0; denied_variables[index] != NULL; index++) {
		const size_t length = strlen(denied_variables[index]);

		if (strncmp(variable, denied_variables[index], length) == 0 && variable[length] == '=')
			return true;
	}
	return false;
}

/* Sets NAME=VALUE; there must be room for one more. */
static void set_variable(char **environment, const char *name, const char *value)
{
	const size_t length = strlen(name);

	while (*environment != NULL && !(starts_with(*environment, name) && (*environment)[length] == '='))
		environment++;
	*environment = format("%s=%s", name, value);
}

/*
 * What `enroot` gets: the job's variables less the denied ones, slurmd's PATH, and what the options ask for.
 * What was made before stays: a task does this once more, and ends.
 */
static void make_environment(spank_t spank)
{
	enum { FURTHER_VARIABLES = 16 };
	char **of_job = NULL;
	char **environment;
	size_t count = 0;
	char number[16];

	if (spank_get_item(spank, S_JOB_ENV, &of_job) != ESPANK_SUCCESS || of_job == NULL)
		return;
	while (of_job[count] != NULL)
		count++;
	environment = calloc(count + FURTHER_VARIABLES, sizeof(char *));
	if (environment == NULL)
		abort();
	user.environment = environment;
	if (getenv("PATH") != NULL)
		*environment++ = format("PATH=%s", getenv("PATH"));
	for (char **variable = of_job; *variable != NULL; variable++)
		if (!is_denied(*variable))
			*environment++ = copy_of(*variable);

	environment = user.environment;
	snprintf(number, sizeof(number), "%u", user.uid);
	set_variable(environment, "SLURM_JOB_UID", number);
	snprintf(number, sizeof(number), "%u", user.gid);
	set_variable(environment, "SLURM_JOB_GID", number);
	for (size_t index = 0; index < sizeof(switches) / sizeof(switches[0]); index++) {
		if (is_given(switches[index].option))
			set_variable(environment, switches[index].variable, "y");
		else if (is_given(switches[index].opposite))
			set_variable(environment, switches[index].variable, "n");
	}
	for (size_t index = 0; index < sizeof(unshared) / sizeof(unshared[0]); index++)
		if (list_has(pyxis_option("container-unshare"), unshared[index].name))
			set_variable(environment, unshared[index].variable, "y");
	set_variable(environment, "PYXIS_RUNTIME_PATH", settings.runtime_path);
	set_variable(environment, "PYXIS_VERSION", PYXIS_VERSION);
}

static int read_job(spank_t spank)
{
	gid_t *groups = NULL;
	gid_t *copy;

	if (spank_get_item(spank, S_JOB_UID, &user.uid) != ESPANK_SUCCESS ||
	    spank_get_item(spank, S_JOB_GID, &user.gid) != ESPANK_SUCCESS ||
	    spank_get_item(spank, S_JOB_SUPPLEMENTARY_GIDS, &groups, &user.group_count) != ESPANK_SUCCESS ||
	    spank_get_item(spank, S_JOB_ID, &job_id) != ESPANK_SUCCESS ||
	    spank_get_item(spank, S_JOB_STEPID, &step_id) != ESPANK_SUCCESS ||
	    spank_get_item(spank, S_JOB_LOCAL_TASK_COUNT, &local_task_count) != ESPANK_SUCCESS ||
	    spank_get_item(spank, S_JOB_TOTAL_TASK_COUNT, &total_task_count) != ESPANK_SUCCESS) {
		slurm_error("pyxis: cannot learn what the job is");
		return -1;
	}
	copy = calloc((size_t)user.group_count + 1, sizeof(gid_t));
	if (copy == NULL)
		abort();
	for (int index = 0; index < user.group_count; index++)
		copy[index] = groups[index];
	user.groups = copy;
	if (spank_getenv(spank, "PWD", job_directory, sizeof(job_directory)) != ESPANK_SUCCESS)
		job_directory[0] = '\0';
	return 0;
}

/* The image as an option, or as a variable of the job, which no Prolog sees. */
static char *find_image(spank_t spank)
{
	char value[PATH_MAX];

	if (is_given("container-image"))
		return copy_of(pyxis_option("container-image"));
	if (spank_getenv(spank, "PYXIS_CONTAINER_IMAGE", value, sizeof(value)) == ESPANK_SUCCESS && *value != '\0')
		return copy_of(value);
	return NULL;
}

static int make_runtime_directory(void)
{
	char *path = format("%s/%u", settings.runtime_path, user.uid);
	int result = 0;

	if (mkdir(settings.runtime_path, 0755) < 0 && errno != EEXIST)
		result = -1;
	else if (mkdir(path, 0700) == 0)
		result = chown(path, user.uid, user.gid);
	else if (errno != EEXIST)
		result = -1;
	if (result < 0)
		slurm_error("pyxis: cannot make \"%s\": %s", path, strerror(errno));
	free(path);
	return result;
}

int slurm_spank_init_post_opt(spank_t spank, int argument_count, char **arguments)
{
	if (spank_context() != S_CTX_REMOTE)
		return 0;
	image = find_image(spank);
	if (image == NULL && !is_given("container-name"))
		return 0;
	is_enabled = true;
	if (read_settings(argument_count, arguments) < 0 || read_job(spank) < 0)
		return -1;
	return make_runtime_directory();
}

/* ---- which container ---- */

/* -1: cannot say, else sets *pid to -1: no such container, 0: not running, or to a process of it. */
static int find_container(const char *name, pid_t *pid)
{
	FILE *list = read_enroot(&user, ENROOT("list", "-f"));
	const size_t length = strlen(name);
	char *line = NULL;
	size_t size = 0;
	bool is_heading = true;

	if (list == NULL)
		return -1;
	*pid = -1;
	while (*pid < 0 && getline(&line, &size, list) >= 0) {
		if (!is_heading && strncmp(line, name, length) == 0 && strchr(" \n", line[length]) != NULL)
			*pid = (pid_t)strtoul(line + length, NULL, 10);
		is_heading = false;
	}
	free(line);
	fclose(list);
	if (is_heading) {
		slurm_error("pyxis: \"enroot list -f\" printed nothing");
		return -1;
	}
	return 0;
}

/* --container-name=NAME[:auto|create|exec|no_exec] */
static int choose_named_container(const char *option)
{
	const char *colon = strchr(option, ':');
	const int length = colon == NULL ? (int)strlen(option) : (int)(colon - option);
	const char *flag = colon == NULL ? "auto" : colon + 1;
	pid_t pid;

	if (settings.is_scope_job)
		container_name = format("pyxis_%u_%.*s", job_id, length, option);
	else
		container_name = format("pyxis_%.*s", length, option);
	if (find_container(container_name, &pid) < 0)
		return -1;
	if (strcmp(flag, "create") == 0 && pid >= 0) {
		slurm_error("pyxis: the container \"%s\" already exists", container_name);
		return -1;
	}
	if (strcmp(flag, "exec") == 0 && pid <= 0) {
		slurm_error("pyxis: the container \"%s\" is not running", container_name);
		return -1;
	}
	if (pid < 0 && image == NULL) {
		slurm_error("pyxis: no container \"%s\", and no --container-image", container_name);
		return -1;
	}
	if (pid >= 0)
		source = SOURCE_EXISTING;
	if (pid > 0 && strcmp(flag, "no_exec") != 0)
		running_pid = pid;
	return 0;
}

/* The squashfs file is started as it is: nothing is created, and nothing is there to be removed. */
static bool is_direct;

static void choose_source(void)
{
	const bool may_be_direct = settings.use_squashfuse && is_temporary && !is_given("container-save");

	if (*image == '.' || *image == '/') {
		squashfs_path = copy_of(image);
		source = may_be_direct ? SOURCE_DIRECT : SOURCE_PATH;
		is_direct = may_be_direct;
	} else if (*settings.importer != '\0') {
		source = SOURCE_IMPORTER;
		is_direct = may_be_direct;
	} else if (settings.use_enroot_load && !starts_with(image, "dockerd://")) {
		source = SOURCE_LOAD;
	} else {
		source = SOURCE_IMPORT;
		squashfs_path = format("%s/%u/%u.%u.squashfs", settings.runtime_path, user.uid, job_id, step_id);
	}
}

static struct shared *share(void)
{
	const int protection = PROT_READ | PROT_WRITE;
	struct shared *memory = mmap(NULL, sizeof(*memory), protection, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_t attributes;

	if (memory == MAP_FAILED)
		return NULL;
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	/* A task may be killed while it creates the container: the others must not wait for it for ever. */
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&memory->mutex, &attributes);
	pthread_mutexattr_destroy(&attributes);
	memory->shell_pid = -1;
	memory->namespace_pid = -1;
	return memory;
}

static int prepare_container(spank_t spank)
{
	int argument_count = 0;
	char **arguments = NULL;

	shared = share();
	if (shared == NULL)
		return -1;
	make_environment(spank);
	if (step_id == SLURM_BATCH_SCRIPT) {
		if (spank_get_item(spank, S_JOB_ARGV, &argument_count, &arguments) != ESPANK_SUCCESS ||
		    argument_count == 0) {
			slurm_error("pyxis: cannot find the batch script");
			return -1;
		}
		batch_script = copy_of(arguments[0]);
	}
	source = SOURCE_PATH;
	if (is_given("container-name")) {
		if (choose_named_container(pyxis_option("container-name")) < 0)
			return -1;
	} else {
		is_temporary = true;
		if (settings.is_scope_job)
			container_name = format("pyxis_%u_%u.%u", job_id, job_id, step_id);
		else
			container_name = format("pyxis_%u.%u", job_id, step_id);
	}
	if (source != SOURCE_EXISTING)
		choose_source();
	return 0;
}

/* An error here would not reach srun: task_init reports it. */
int slurm_spank_user_init(spank_t spank, int argument_count, char **arguments)
{
	(void)argument_count;
	(void)arguments;

	if (is_enabled)
		is_prepared = prepare_container(spank) == 0;
	return 0;
}

/* ---- create and start ---- */

static int create_from_registry(void)
{
	const bool has_scheme = starts_with(image, "docker://") || starts_with(image, "dockerd://");
	char *uri = format("%s%s", has_scheme ? "" : "docker://", image);
	int result;

	if (total_task_count <= 1)
		slurm_spank_log("pyxis: importing docker image: %s", image);
	if (source == SOURCE_IMPORTER) {
		squashfs_path = get_from_importer(&user, settings.importer, uri);
		result = squashfs_path == NULL ? -1 : 0;
	} else if (source == SOURCE_LOAD)
		result = run_enroot(&user, ENROOT("load", "--name", container_name, uri));
	else
		result = run_enroot(&user, ENROOT("import", "--output", squashfs_path, uri));
	if (result < 0)
		slurm_error("pyxis: failed to import docker image: %s", image);
	else
		slurm_spank_log("pyxis: imported docker image: %s", image);
	free(uri);
	return result;
}

static int create_container(void)
{
	int result = 0;

	if (source == SOURCE_EXISTING || source == SOURCE_DIRECT)
		return 0;
	if (source == SOURCE_IMPORT || source == SOURCE_LOAD || source == SOURCE_IMPORTER)
		result = create_from_registry();
	if (result == 0 && source != SOURCE_LOAD && !is_direct) {
		result = run_enroot(&user, ENROOT("create", "--name", container_name, squashfs_path));
		if (result < 0)
			slurm_error("pyxis: failed to create container filesystem for image: %s", image);
	}
	if (result < 0)
		show_enroot_log(true);
	if (source == SOURCE_IMPORT)
		unlink(squashfs_path);
	/* A file that is started as it is must stay as long as the step. */
	if (source == SOURCE_IMPORTER && (result < 0 || !is_direct))
		release_importer(&user, settings.importer);
	return result;
}

/* Returns the container's shell, stopped: by then the container has its root and its namespaces. */
static pid_t start_container(void)
{
	char *target = is_direct ? squashfs_path : container_name;
	char configuration[] = "/tmp/.enroot_config_XXXXXX";
	pid_t pid = -1;
	int status;

	if (write_start_configuration(configuration, running_pid > 0, runs_entrypoint(), batch_script) == 0)
		pid = start_enroot(&user, ENROOT("start", "--conf", configuration, target, "sh", "-c",
						"kill -STOP $$ ; exit 0"));
	if (pid > 0 && (waitpid(pid, &status, WUNTRACED) < 0 || !WIFSTOPPED(status))) {
		slurm_error("pyxis: container start failed: status %d", status);
		pid = -1;
	}
	if (pid < 0)
		show_enroot_log(true);
	else if (runs_entrypoint() && is_given("container-entrypoint-log"))
		show_enroot_log(false);
	unlink(configuration);
	return pid;
}

/* The first task of the step creates and starts the container; the others wait and find it there. */
static int start_container_once(void)
{
	int result = pthread_mutex_lock(&shared->mutex);

	if (result == EOWNERDEAD) {
		slurm_error("pyxis: another task ended while it set the container up");
		pthread_mutex_consistent(&shared->mutex);
		shared->shell_pid = -1;
	} else if (result != 0) {
		return -1;
	} else if (shared->is_begun) {
		if (shared->shell_pid < 0)
			slurm_error("pyxis: another task could not start the container");
	} else {
		shared->is_begun = true;
		if (create_container() == 0) {
			shared->shell_pid = start_container();
			shared->namespace_pid = running_pid > 0 ? running_pid : shared->shell_pid;
			if (shared->shell_pid < 0 && source == SOURCE_IMPORTER && is_direct)
				release_importer(&user, settings.importer);
		}
	}
	result = shared->shell_pid > 0 ? 0 : -1;
	pthread_mutex_unlock(&shared->mutex);
	return result;
}

/* ---- joining ---- */

/* The container's variables win over the job's, but for those of --container-env. */
static int take_environment(spank_t spank, pid_t pid)
{
	static const char *const locale[] = { "LANG", "LANGUAGE", "LC_ALL" };
	const char *kept = pyxis_option("container-env");
	char *path = format("/proc/%d/environ", pid);
	FILE *file = fopen(path, "r");
	char *variable = NULL;
	size_t size = 0;

	free(path);
	if (file == NULL)
		return -1;
	for (size_t index = 0; index < sizeof(locale) / sizeof(locale[0]); index++)
		if (!list_has(kept, locale[index]))
			spank_unsetenv(spank, locale[index]);
	while (getdelim(&variable, &size, '\0', file) > 0) {
		char *value = strchr(variable, '=');

		if (value == NULL)
			continue;
		*value++ = '\0';
		spank_setenv(spank, variable, value, !list_has(kept, variable));
	}
	free(variable);
	fclose(file);
	return 0;
}

/*
 * Sets *fd to a descriptor of a namespace of that process; -1: there is nothing to join. A namespace that the
 * kernel does not show is an error.
 */
static int open_namespace(pid_t pid, int index, int *fd)
{
	char *path = format("/proc/%d/ns/%s", pid, namespaces[index].name);
	char *own_path = format("/proc/self/ns/%s", namespaces[index].name);
	struct stat its;
	struct stat own;
	int result = 0;

	*fd = open(path, O_RDONLY | O_CLOEXEC);
	if (*fd < 0) {
		result = namespaces[index].is_optional && errno == ENOENT ? 0 : -1;
	} else if (!namespaces[index].is_own) {
		if (fstat(*fd, &its) < 0 || stat(own_path, &own) < 0)
			result = -1;
		if (result < 0 || (its.st_dev == own.st_dev && its.st_ino == own.st_ino)) {
			close(*fd);
			*fd = -1;
		}
	}
	if (result < 0)
		slurm_error("pyxis: cannot open \"%s\": %s", path, strerror(errno));
	free(path);
	free(own_path);
	return result;
}

static int join_container(spank_t spank)
{
	char *link = format("/proc/%d/cwd", shared->shell_pid);
	char directory[PATH_MAX] = "";
	const char *wanted = pyxis_option("container-workdir");
	int fds[NAMESPACE_COUNT];

	/* All are opened before the first is joined: afterwards /proc is the container's. */
	for (int index = 0; index < NAMESPACE_COUNT; index++) {
		const char *const name = namespaces[index].name;

		if (open_namespace(shared->namespace_pid, index, &fds[index]) < 0)
			return -1;
		if (fds[index] < 0 && list_has(pyxis_option("container-unshare"), name)) {
			slurm_error("pyxis: the container has no %s namespace of its own", name);
			return -1;
		}
	}
	if (readlink(link, directory, sizeof(directory) - 1) < 0 ||
	    take_environment(spank, shared->shell_pid) < 0) {
		slurm_error("pyxis: cannot read the container's directory or environment: %s", strerror(errno));
		return -1;
	}
	free(link);
	for (int index = 0; index < NAMESPACE_COUNT; index++) {
		if (fds[index] >= 0 && setns(fds[index], 0) < 0) {
			slurm_error("pyxis: cannot join the container's %s namespace: %s", namespaces[index].name,
				    strerror(errno));
			return -1;
		}
	}
	if (chdir(wanted == NULL ? directory : wanted) < 0) {
		slurm_error("pyxis: cannot change to \"%s\" in the container: %s", wanted == NULL ? directory : wanted,
			    strerror(errno));
		return -1;
	}
	return 0;
}

int slurm_spank_task_init(spank_t spank, int argument_count, char **arguments)
{
	(void)argument_count;
	(void)arguments;

	if (!is_enabled)
		return 0;
	if (!is_prepared)
		return -1;
	make_environment(spank);
	if (start_container_once() < 0 || join_container(spank) < 0)
		return -1;
	/* A container on squashfuse ends with its shell: it stays stopped until Slurm ends the step. */
	if (atomic_fetch_add(&shared->joined_tasks, 1) + 1 == local_task_count && !is_direct)
		kill(shared->shell_pid, SIGCONT);
	return 0;
}

/* ---- the end ---- */

static int export_container(void)
{
	const char *target = pyxis_option("container-save");
	char *path;
	int result;

	/* A step that was stopped before all its tasks ran is not worth saving. */
	if (target == NULL || atomic_load(&shared->joined_tasks) != local_task_count)
		return 0;
	if (*target != '/' && *job_directory == '\0') {
		slurm_error("pyxis: cannot save to \"%s\": the job's directory is unknown", target);
		return -1;
	}
	path = *target == '/' ? copy_of(target) : format("%s/%s", job_directory, target);
	result = run_enroot(&user, ENROOT("export", "-f", "-o", path, container_name));
	if (result == 0) {
		slurm_spank_log("pyxis: exported container %s to %s", container_name, target);
	} else {
		show_enroot_log(true);
		slurm_error("pyxis: failed to export container %s to %s", container_name, target);
	}
	free(path);
	return result;
}

int slurm_spank_task_exit(spank_t spank, int argument_count, char **arguments)
{
	int result;

	(void)spank;
	(void)argument_count;
	(void)arguments;
	if (!is_enabled || shared == NULL)
		return 0;
	if (atomic_fetch_add(&shared->ended_tasks, 1) + 1 != local_task_count)
		return 0;
	result = export_container();
	/* Left there if the task was killed between import and create. */
	if (source == SOURCE_IMPORT && squashfs_path != NULL)
		unlink(squashfs_path);
	/* Once more: the task may have been killed before. */
	if (source == SOURCE_IMPORTER)
		release_importer(&user, settings.importer);
	if (is_temporary && !is_direct && run_enroot(&user, ENROOT("remove", "-f", container_name)) < 0)
		slurm_info("pyxis: failed to remove container filesystem: %s", container_name);
	return result;
}

/*
 * Calls `use` with the name of each container of the job, and returns how many it refused (-1: they cannot be
 * listed).
 */
static int for_each_of_job(int (*use)(char *name))
{
	FILE *list = read_enroot(&user, ENROOT("list"));
	char *prefix;
	char *name = NULL;
	size_t size = 0;
	int refused = 0;

	if (list == NULL)
		return -1;
	prefix = format("pyxis_%u_", job_id);
	while (getline(&name, &size, list) >= 0) {
		name[strcspn(name, "\n")] = '\0';
		if (starts_with(name, prefix) && use(name) < 0)
			refused++;
	}
	free(name);
	free(prefix);
	fclose(list);
	return refused;
}

static int remove_of_job(char *name)
{
	if (run_enroot(&user, ENROOT("remove", "-f", name)) == 0)
		return 0;
	show_enroot_log(true);
	return -1;
}

static int refuse_of_job(char *name)
{
	slurm_error("pyxis: the container \"%s\" is still there", name);
	return -1;
}

/* An error drains the node: a `remove` that failed is one only if the container is still there. */
int slurm_spank_job_epilog(spank_t spank, int argument_count, char **arguments)
{
	int refused;

	if (read_settings(argument_count, arguments) < 0)
		return -1;
	if (!settings.is_scope_job)
		return 0;
	if (spank_get_item(spank, S_JOB_UID, &user.uid) != ESPANK_SUCCESS ||
	    spank_get_item(spank, S_JOB_GID, &user.gid) != ESPANK_SUCCESS ||
	    spank_get_item(spank, S_JOB_ID, &job_id) != ESPANK_SUCCESS)
		return -1;
	setenv("PATH", "/usr/local/bin:/usr/bin:/bin", 0);
	unsetenv("HOME");
	refused = for_each_of_job(remove_of_job);
	if (refused > 0)
		refused = for_each_of_job(refuse_of_job);
	return refused == 0 ? 0 : -1;
}
