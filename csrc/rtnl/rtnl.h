#ifndef NP_RTNL_H
#define NP_RTNL_H
/* cdef */
int np_netns_create(const char *path);
int np_netns_enter(const char *path);
int np_private_namespaces(int mounts, int network);
int np_socket_open(const char *netns, int protocol);
/* cdef */
#endif
