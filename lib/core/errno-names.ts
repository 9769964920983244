/**
 * The names of Linux' error numbers (errno(3)), which are the same on x86-64 and arm64. Node knows some of
 * them: of the others it says `Unknown system error -117`.
 */

/** By number, from 1; `-` where there is none. Of two names for one number, Node's. */
const names = (
  'EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK ' +
  'EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE ' +
  'EROFS EMLINK EPIPE EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP - ENOMSG EIDRM ' +
  'ECHRNG EL2NSYNC EL3HLT EL3RST ELNRNG EUNATCH ENOCSI EL2HLT EBADE EBADR EXFULL ENOANO EBADRQC EBADSLT ' +
  '- EBFONT ENOSTR ENODATA ETIME ENOSR ENONET ENOPKG EREMOTE ENOLINK EADV ESRMNT ECOMM EPROTO EMULTIHOP ' +
  'EDOTDOT EBADMSG EOVERFLOW ENOTUNIQ EBADFD EREMCHG ELIBACC ELIBBAD ELIBSCN ELIBMAX ELIBEXEC EILSEQ ' +
  'ERESTART ESTRPIPE EUSERS ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ' +
  'ESOCKTNOSUPPORT ENOTSUP EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ' +
  'ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ESHUTDOWN ETOOMANYREFS ETIMEDOUT ' +
  'ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ESTALE EUCLEAN ENOTNAM ENAVAIL EISNAM ' +
  'EREMOTEIO EDQUOT ENOMEDIUM EMEDIUMTYPE ECANCELED ENOKEY EKEYEXPIRED EKEYREVOKED EKEYREJECTED ' +
  'EOWNERDEAD ENOTRECOVERABLE ERFKILL EHWPOISON'
).split(' ');

/** All of them, in the order of their numbers. */
export const errnoNames: readonly string[] = names.filter((name) => name !== '-');

/**
 * @param errno positive as in C, or negative as Node and the kernel have it
 * @returns "ENOENT" and the like; undefined for what is no error number
 */
export function errnoName(errno: number): string | undefined {
  const name = names[Math.abs(errno) - 1];
  return name === '-' ? undefined : name;
}

/** A message of Node, with the names of the error numbers that Node does not know. */
export function nameErrnos(message: string): string {
  return message.replace(
    /Unknown system error -?(\d{1,5})(?:: Unknown system error -?\1)?/g,
    (text, number: string) => errnoName(Number(number)) ?? text,
  );
}
