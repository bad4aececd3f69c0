package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pilotnet/pilot/cmd/pilotctl/demo/lab"
	"github.com/pilotnet/pilot/overlay"
	"github.com/pilotnet/pilot/overlay/api"
)

// Stage is the first process of the namespaces. It starts the process that tells
// the story, and returns the exit status of that.
func Stage(dir string, o Options) (int, error) {
	exe, err := os.Executable()
	if err == nil {
		err = lab.Isolate()
	}
	if err != nil {
		return 0, tell(report{Error: api.AsError(notAllowed(err))})
	}
	files := make([]uintptr, nextFD)
	for fd := range files {
		files[fd] = uintptr(fd)
	}
	return lab.Init(exe, append([]string{exe}, arguments("story", dir, o)...), files)
}

// arguments are those of this program for a process of the demo.
func arguments(process, dir string, o Options) []string {
	return []string{"demo", process, "--color=" + strconv.FormatBool(o.Color), "--keep=" + strconv.FormatBool(o.Keep), dir}
}

// Play is the process that tells the story, with its files in dir. It returns when
// the lab is to go.
func Play(ctx context.Context, dir string, o Options) error {
	for fd := range nextFD {
		unix.CloseOnExec(fd)
	}
	lifeline := os.NewFile(lifelineFD, "lifeline")
	control, err := listener()
	if err != nil {
		return tell(report{Error: api.AsError(err)})
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var kept sync.WaitGroup // until the lifeline says so
	kept.Go(func() {
		if n, _ := lifeline.Read(make([]byte, 1)); n == 0 {
			cancel()
		}
	})
	s, err := newStory(ctx, dir, o)
	if err == nil {
		go serve(control, s.world, cancel)
		if err = s.tell(); err != nil && ctx.Err() == nil {
			s.logs()
		}
	}
	if err != nil {
		return tell(report{Error: api.AsError(err)})
	}
	result := Result{Seconds: time.Since(s.begun).Seconds(), Kept: o.Keep}
	if err := tell(report{Result: &result}); err != nil || !o.Keep {
		return err
	}
	kept.Wait()
	<-ctx.Done()
	return nil
}

// tell sends the report, and lets go of all that the first process reads.
func tell(r report) error {
	f := os.NewFile(reportFD, "report")
	err := json.NewEncoder(f).Encode(r)
	f.Close()
	null, nullErr := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil || nullErr != nil {
		return overlay.Errorf(overlay.CodeInternal, "the demo cannot report: %v %v", err, nullErr)
	}
	defer null.Close()
	for fd := 1; fd <= 2; fd++ {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("demo: let go of the terminal: %w", err)
		}
	}
	return nil
}

func listener() (*net.UnixListener, error) {
	f := os.NewFile(controlFD, "control")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("demo: control socket: %w", err)
	}
	return l.(*net.UnixListener), nil
}
