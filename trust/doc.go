// Package trust is the book of who may reach whom. (Specification follows.)
package trust
