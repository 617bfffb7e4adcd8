#ifndef NP_RTNL_H
#define NP_RTNL_H
/* cdef */
int np_socket_open(const char *netns, int protocol);
/* cdef */
#endif
