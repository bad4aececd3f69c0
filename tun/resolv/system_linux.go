package resolv

// systemMeans are the means of this system that are better than the hosts file.
func systemMeans(c Config) []means { return []means{newResolved(c)} }

// systemNotes are what to say when the hosts file is used nevertheless.
func systemNotes() []string { return hostsNotes(systemPaths()) }
