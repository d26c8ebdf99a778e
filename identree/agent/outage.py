"""
What is said while the server cannot be reached, in the languages that have no whole catalogue yet.

At that moment a person has to understand what is asked of them; the rest can be English until it is translated. The
keys and named places are those of :mod:`identree.agent.messages`.
"""

from __future__ import annotations

SPANISH = {
    "retrying": "no se puede contactar con {server} ({detail}); se sigue intentando durante {seconds} s",
    "server_silent": "{server} no responde; se sigue intentando",
    "server_vanished": "{server} dejó de estar accesible mientras la solicitud esperaba",
    "unreachable": "no se puede contactar con {server} ({detail}). Compruebe la red y la resolución de nombres de este "
    "equipo, o avise a quien administra identree; después ejecute sudo de nuevo.",
    "breakglass_banner": "*** ACCESO DE EMERGENCIA: no se puede contactar con {server} ***",
    "breakglass_explain": "Introduzca la contraseña de emergencia de {host}. Su uso queda registrado y se comunicará "
    "más tarde.",
    "breakglass_prompt": "contraseña de emergencia: ",
    "breakglass_opened": "contraseña de emergencia aceptada; este uso queda registrado",
    "breakglass_failed": "autenticación fallida",
    "breakglass_limited": "demasiados intentos fallidos; inténtelo de nuevo dentro de {seconds} s",
    "breakglass_interrupted": "interrumpido",
    "breakglass_no_terminal": "no se puede contactar con el servidor, y no hay terminal donde pedir la contraseña de "
    "emergencia. Ejecute sudo en un terminal.",
    "breakglass_unusable": "no se puede contactar con el servidor, y el acceso de emergencia no es posible en este "
    "equipo: {detail}",
}

FRENCH = {
    "retrying": "{server} est injoignable ({detail}) ; nouvelles tentatives pendant {seconds} s",
    "server_silent": "{server} ne répond pas ; les tentatives continuent",
    "server_vanished": "{server} est devenu injoignable pendant que la demande attendait",
    "unreachable": "{server} est injoignable ({detail}). Vérifiez le réseau et la résolution de noms de cette machine, "
    "ou prévenez les responsables d'identree ; relancez ensuite sudo.",
    "breakglass_banner": "*** ACCÈS D'URGENCE : {server} est injoignable ***",
    "breakglass_explain": "Saisissez le mot de passe d'urgence de {host}. Son utilisation est enregistrée et sera "
    "signalée plus tard.",
    "breakglass_prompt": "mot de passe d'urgence : ",
    "breakglass_opened": "mot de passe d'urgence accepté ; cette utilisation est enregistrée",
    "breakglass_failed": "échec de l'authentification",
    "breakglass_limited": "trop de tentatives échouées ; réessayez dans {seconds} s",
    "breakglass_interrupted": "interrompu",
    "breakglass_no_terminal": "le serveur est injoignable, et aucun terminal ne permet de demander le mot de passe "
    "d'urgence. Lancez sudo dans un terminal.",
    "breakglass_unusable": "le serveur est injoignable, et l'accès d'urgence est impossible sur cette machine : "
    "{detail}",
}

PORTUGUESE = {
    "retrying": "não é possível contactar {server} ({detail}); novas tentativas durante {seconds} s",
    "server_silent": "{server} não responde; as tentativas continuam",
    "server_vanished": "{server} deixou de estar acessível enquanto o pedido esperava",
    "unreachable": "não é possível contactar {server} ({detail}). Verifique a rede e a resolução de nomes desta "
    "máquina, ou avise quem administra o identree; depois execute sudo de novo.",
    "breakglass_banner": "*** ACESSO DE EMERGÊNCIA: não é possível contactar {server} ***",
    "breakglass_explain": "Introduza a senha de emergência de {host}. O uso fica registado e será comunicado mais "
    "tarde.",
    "breakglass_prompt": "senha de emergência: ",
    "breakglass_opened": "senha de emergência aceite; este uso fica registado",
    "breakglass_failed": "falha na autenticação",
    "breakglass_limited": "demasiadas tentativas falhadas; tente de novo dentro de {seconds} s",
    "breakglass_interrupted": "interrompido",
    "breakglass_no_terminal": "não é possível contactar o servidor, e não há terminal onde pedir a senha de "
    "emergência. Execute sudo num terminal.",
    "breakglass_unusable": "não é possível contactar o servidor, e o acesso de emergência é impossível nesta máquina: "
    "{detail}",
}

JAPANESE = {
    "retrying": "{server} に接続できません ({detail})。{seconds} 秒間再試行します",
    "server_silent": "{server} が応答しません。再試行を続けています",
    "server_vanished": "申請の待機中に {server} に接続できなくなりました",
    "unreachable": "{server} に接続できません ({detail})。このホストのネットワークと名前解決を確認するか、identree の"
    "管理者に連絡してから、sudo を再実行してください。",
    "breakglass_banner": "*** 緊急アクセス: {server} に接続できません ***",
    "breakglass_explain": "{host} の緊急用パスワードを入力してください。使用は記録され、後で報告されます。",
    "breakglass_prompt": "緊急用パスワード: ",
    "breakglass_opened": "緊急用パスワードを確認しました。この使用は記録されました",
    "breakglass_failed": "認証に失敗しました",
    "breakglass_limited": "失敗が多すぎます。{seconds} 秒後に再試行してください",
    "breakglass_interrupted": "中断しました",
    "breakglass_no_terminal": "サーバーに接続できず、緊急用パスワードを尋ねる端末もありません。端末で sudo を実行して"
    "ください。",
    "breakglass_unusable": "サーバーに接続できず、このホストでは緊急アクセスも使えません: {detail}",
}

CHINESE = {
    "retrying": "无法连接 {server} ({detail});将在 {seconds} 秒内继续重试",
    "server_silent": "{server} 没有响应;仍在重试",
    "server_vanished": "请求等待期间 {server} 已无法连接",
    "unreachable": "无法连接 {server} ({detail})。请检查本机的网络和域名解析,或联系 identree 的管理员,然后重新运行 "
    "sudo。",
    "breakglass_banner": "*** 紧急访问:无法连接 {server} ***",
    "breakglass_explain": "请输入 {host} 的紧急密码。此次使用会被记录,并在之后上报。",
    "breakglass_prompt": "紧急密码:",
    "breakglass_opened": "紧急密码正确;此次使用已记录",
    "breakglass_failed": "认证失败",
    "breakglass_limited": "失败次数过多;请在 {seconds} 秒后重试",
    "breakglass_interrupted": "已中断",
    "breakglass_no_terminal": "无法连接服务器,也没有可输入紧急密码的终端。请在终端中运行 sudo。",
    "breakglass_unusable": "无法连接服务器,本机也无法使用紧急访问:{detail}",
}

KOREAN = {
    "retrying": "{server}에 연결할 수 없습니다({detail}). {seconds}초 동안 다시 시도합니다",
    "server_silent": "{server}이(가) 응답하지 않습니다. 계속 시도하고 있습니다",
    "server_vanished": "요청을 기다리는 동안 {server}에 연결할 수 없게 되었습니다",
    "unreachable": "{server}에 연결할 수 없습니다({detail}). 이 호스트의 네트워크와 이름 확인을 점검하거나 identree "
    "관리자에게 알린 뒤 sudo를 다시 실행하십시오.",
    "breakglass_banner": "*** 비상 접근: {server}에 연결할 수 없습니다 ***",
    "breakglass_explain": "{host}의 비상 비밀번호를 입력하십시오. 사용 내역은 기록되며 나중에 보고됩니다.",
    "breakglass_prompt": "비상 비밀번호: ",
    "breakglass_opened": "비상 비밀번호가 확인되었습니다. 이 사용은 기록되었습니다",
    "breakglass_failed": "인증에 실패했습니다",
    "breakglass_limited": "실패 횟수가 너무 많습니다. {seconds}초 후에 다시 시도하십시오",
    "breakglass_interrupted": "중단되었습니다",
    "breakglass_no_terminal": "서버에 연결할 수 없고 비상 비밀번호를 물을 터미널도 없습니다. 터미널에서 sudo를 "
    "실행하십시오.",
    "breakglass_unusable": "서버에 연결할 수 없고 이 호스트에서는 비상 접근도 할 수 없습니다: {detail}",
}

CATALOGUES = {"es": SPANISH, "fr": FRENCH, "pt": PORTUGUESE, "ja": JAPANESE, "zh": CHINESE, "ko": KOREAN}
