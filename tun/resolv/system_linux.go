package resolv

// systemMeans are the means of this system that are better than the hosts file.
func systemMeans(c Config) []means {
	switch c.Mode {
	case Auto:
		return []means{newResolved(c), newResolvconf(c)}
	case Resolvconf:
		return []means{newResolvconf(c)}
	}
	return nil
}

// systemLeft are the means that outlive a killed agent.
func systemLeft(c Config) []means { return []means{newResolvconf(c)} }
