#ifndef NP_RTNL_H
#define NP_RTNL_H
/* cdef */
int np_netns_create(const char *path);
int np_netns_enter(const char *path);
int np_private_namespaces(int mounts, int network);
int np_socket_open(const char *netns, int protocol);
int np_link_index(const char *netns, const char *name);
long long np_netns_cookie(const char *netns);
int np_batch_send(int fd, char *buf, int len, int *errnos, int n, char *out, int size);
int np_sysctl_write(const char *netns, const char *pairs, int *errnos, int n);
int np_sysctl_read(const char *netns, const char *path, char *out, int size);
int np_pair_make(int own, unsigned int seq, const char *netns, const char *told, int size);
struct np_errand *np_errand_begin(int own, unsigned int seq, const char *netns, const char *told, int size);
int np_errand_end(struct np_errand *errand);
/* cdef */
int np_netns_visit(const char *path, int *home);
int np_netns_visit_fd(int fd, int *home);
void np_sysctl_write_here(const char *pairs, int *errnos, int n);
void np_netns_return(int home);
#endif
