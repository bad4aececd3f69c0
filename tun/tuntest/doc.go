// Package tuntest has a network device without a kernel, and the test suite that
// every tun.Device passes.
//
// Channel is a device in memory. It is made of channels alone, so it can be used
// inside a testing/synctest bubble. The test plays the host: Inject puts a packet
// where Device.Read finds it, Receive takes what Device.Write was given.
//
// Conformance asks of a device what the documentation of tun.Device promises. It
// reaches the host behind the device through Host, which Channel implements by
// itself and which the test of the kernel device implements with a packet socket.
package tuntest
