package exchange

import (
	"errors"
	"net/http"

	"github.com/pilotnet/pilot/overlay/services"
)

func badName(err error) *services.Error {
	return services.Refuse(http.StatusBadRequest, services.CodeInvalid, "%v", err).WithHint("choose a plain name of letters, digits, dots and hyphens")
}

func notFound(name string) *services.Error {
	return services.Refuse(http.StatusNotFound, services.CodeNotFound, "there is no %.80q", name)
}

// asError makes an answer of any error. What happened inside is not told.
func asError(err error) *services.Error {
	e := new(services.Error)
	if errors.As(err, &e) {
		return e
	}
	if e := services.DiskFault(err, "of the receiver"); e != nil {
		return e
	}
	return services.Refuse(http.StatusInternalServerError, services.CodeInternal, "the file could not be stored or read").Retry()
}

func diskFull() *services.Error {
	return services.Refuse(http.StatusInsufficientStorage, services.CodeQuota, "the disk of the receiver is full").Retry()
}
